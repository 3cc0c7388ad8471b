"""FlexiVideo inside vLLM: what the families' models have in common. Video items are packed scenes with their own clock.

Differs from stock in three places: patches are embedded by the shared FlexiPatchEmbed, positions come from the shared
`mrope_positions`, and tokens a policy may not write are masked in `compute_logits`, so sampled and prompt log-probs are
of the same distribution the learner normalises over. Inputs are those of rl.policy.vllm.inputs.

Legend: N patches · D values of a patch · K scenes · T tokens · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.attention.mm_encoder_attention import MMEncoderAttention
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod, VocabParallelEmbedding
from vllm.model_executor.models.vision import run_dp_sharded_mrope_vision_model
from vllm.multimodal.inputs import MultiModalFeatureSpec
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from rl.policy.batch_invariant import PADDINGS, BatchInvariantLinear
from rl.policy.patch_embed import make_patch_embed
from rl.policy.policy_folder import scenes_of
from rl.policy.positions import SceneClock, mrope_positions
from rl.policy.processor import Processor
from rl.policy.vllm.inputs import VIDEO
from rl.policy.vllm.plugin import BATCH_INVARIANT
from rl.policy.window_attention import Windows, attend

PATCHES_AT_ONCE = 2**16  # that are embedded together, of whole scenes; in float32 each takes 5 kB


class SceneEngine:
    """What a family's model asks in vLLM: encodes items, says where tokens stand, masks what may not be written.

    A family's class is ScenePolicy before its stock class.
    """

    def __init__(self, model: torch.nn.Module, vllm_config: VllmConfig) -> None:
        """Puts our patch embedding into the stock tower and keeps all weights plain."""
        scenes, vision = scenes_of(model.config), model.config.vision_config
        processor = Processor.from_pretrained(vllm_config.model_config.model, scenes)
        family = processor.geometry.family
        with model._mark_tower_model(vllm_config, {VIDEO}):
            model.visual.patch_embed = make_patch_embed(vision.hidden_size, vision.patch_size, scenes, family)
        self._visual, self._ids, self._geometry = model.visual, processor.ids, processor.geometry
        self._one_grid_per_scene = model.one_grid_per_scene
        self._several_gpus = model.use_data_parallel and get_tensor_model_parallel_world_size() > 1
        self._banned_ids = torch.from_numpy(np.flatnonzero(~processor.allowed_token_mask()))
        self.encoded_items = 0  # by the vision tower
        self.product = BatchInvariantLinear(PADDINGS[0]) if vllm_config.additional_config.get(BATCH_INVARIANT) else None
        keep_weights_plain(model)
        attend_to_windows_together(model.visual)
        if self.product:
            make_products_batch_invariant(model, self.product)

    def encode(self, fields: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Visual tokens of each item, in order; one run of the tower for all of them, or one each (BATCH_INVARIANT).

        Where the tower has DeepStack's levels, they stand beside the embeddings: (tokens, E * (1 + levels)).
        """
        if self.product and len(fields["shapes"]) > 1:
            return tuple(tokens for alone in _one_by_one(fields) for tokens in self.encode(alone))
        grids = [[scenes, grid_h, grid_w] for _, scenes, grid_h, grid_w in fields["shapes"].tolist()]
        per_scene_K = [grid_h * grid_w for scenes, grid_h, grid_w in grids for _ in range(scenes)]
        embedded = self._embed(fields["patches"], fields["scene_lengths"].tolist(), per_scene_K)
        self.encoded_items += len(grids)
        merge = self._geometry.merge**2
        return self._run_tower(embedded, grids).split([t * h * w // merge for t, h, w in grids])

    def positions(
        self, token_ids: Sequence[int], features: Sequence[MultiModalFeatureSpec]
    ) -> tuple[torch.Tensor, int]:
        """The learner's positions, and by how much generated tokens are ahead of their place in the sequence."""
        in_order = sorted(features, key=lambda feature: feature.mm_position.offset)
        positions_3T = mrope_positions(
            token_ids,
            [self._clock(feature) for feature in in_order],
            ids=self._ids,
            tokens_per_second=self._geometry.tokens_per_second,
            markers=self._geometry.family.markers,
        )
        return torch.from_numpy(positions_3T), int(positions_3T.max()) + 1 - len(token_ids)

    def mask(self, logits_TV: torch.Tensor | None) -> torch.Tensor | None:
        """-inf where the policy may not write, in place."""
        if logits_TV is not None:
            self._banned_ids = self._banned_ids.to(logits_TV.device)
            logits_TV.index_fill_(-1, self._banned_ids, -torch.inf)
        return logits_TV

    def _embed(
        self, patches_ND: torch.Tensor, scene_lengths_K: Sequence[int], per_scene_K: Sequence[int]
    ) -> torch.Tensor:
        """Patches embedded, a bounded number of them at a time: vLLM's budget is one of tokens, and a still clip of
        many frames has few."""
        counts_K = [length * patches for length, patches in zip(scene_lengths_K, per_scene_K, strict=True)]
        embedded, row = [], 0
        for first, last in _parts(counts_K, PATCHES_AT_ONCE):
            rows = sum(counts_K[first:last])
            part_ND = patches_ND[row : row + rows].to(self._visual.device)
            embedded.append(self._visual.patch_embed(part_ND, scene_lengths_K[first:last], per_scene_K[first:last]))
            row += rows
        return torch.cat(embedded) if len(embedded) > 1 else embedded[0]

    def _run_tower(self, embedded: torch.Tensor, grids: Sequence[Sequence[int]]) -> torch.Tensor:
        """Visual tokens of all scenes. No scene attends to another one, so several GPUs run some scenes each."""
        if self._several_gpus or self._one_grid_per_scene:
            grids = [[1, grid_h, grid_w] for scenes, grid_h, grid_w in grids for _ in range(scenes)]
        if self._several_gpus:
            return torch.cat(run_dp_sharded_mrope_vision_model(self._visual, embedded, grids, rope_type="rope_3d"))
        return self._visual(embedded, grid_thw=grids)

    def _clock(self, feature: MultiModalFeatureSpec) -> SceneClock:
        _, _, grid_h, grid_w = feature.data["shapes"].data.tolist()
        times_s_K = tuple(feature.data["scene_times"].data.tolist())
        return SceneClock(times_s_K, grid_h, grid_w, self._geometry.merge)


class ScenePolicy(torch.nn.Module):
    """What stands before the stock class in a family's: an engine for scenes, and the calls of vLLM that ask it."""

    supports_mm_device_do_normalize = False  # or vLLM normalises our embeddings again
    one_grid_per_scene: ClassVar[bool] = False  # its tower is told of every scene; else of every video's number of them

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.scene_engine = SceneEngine(self, vllm_config)

    def embed_multimodal(self, **fields: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Visual tokens of each item, in order."""
        return self.scene_engine.encode(fields)

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[MultiModalFeatureSpec]
    ) -> tuple[torch.Tensor, int]:
        """The learner's positions, and by how much generated tokens are ahead."""
        return self.scene_engine.positions(input_tokens, mm_features)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Logits over the vocabulary; -inf where the policy may not write."""
        return self.scene_engine.mask(super().compute_logits(hidden_states))


class WindowsTogether(torch.nn.Module):
    """The tower's attention where vLLM would call SDPA for one window after the other: the learner's."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self._scale = scale

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seqlens: torch.Tensor, **_: object
    ) -> torch.Tensor:
        """(1, N, heads, values) each; see `attend`."""
        windows = _windows(tuple(cu_seqlens.diff().tolist()), query.device)
        return attend(query[0], key[0], value[0], windows, self._scale)[None]


@lru_cache(maxsize=16)  # all blocks of a pass have the same one or two
def _windows(lengths: tuple[int, ...], device: torch.device) -> Windows:
    return Windows.of(lengths, device)


class PlainEmbeddingMethod(UnquantizedEmbeddingMethod):
    """Embeddings and output head computed from the parameter itself."""

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """On CPU vLLM would multiply with a packed copy, and go on with it after the parameter has been replaced."""
        layer.cpu_linear = torch.nn.functional.linear


class BatchInvariantLinearMethod(UnquantizedLinearMethod):
    """A linear layer whose products do not depend on the batch, on CPU."""

    def __init__(self, product: BatchInvariantLinear) -> None:
        super().__init__()
        self._product = product

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """As PlainEmbeddingMethod."""
        layer.cpu_linear = self._product


class BatchInvariantEmbeddingMethod(UnquantizedEmbeddingMethod):
    """Embeddings, and an output head likewise."""

    def __init__(self, product: BatchInvariantLinear) -> None:
        super().__init__()
        self._product = product

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """As PlainEmbeddingMethod."""
        layer.cpu_linear = self._product


def attend_to_windows_together(tower: torch.nn.Module) -> None:
    """Give the tower's blocks the learner's attention, where vLLM's loops over windows: on CPU."""
    for module in list(tower.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, MMEncoderAttention) and layer.attn_backend is AttentionBackendEnum.TORCH_SDPA:
                setattr(module, name, WindowsTogether(layer.scale))


def keep_weights_plain(model: torch.nn.Module) -> None:
    """Have every layer compute from its parameters: packed copies could be neither updated in place nor read back."""
    for layer in model.modules():
        if isinstance(layer, LinearBase):
            layer._cpu_skip_gemm_dispatch = True
        elif isinstance(layer, VocabParallelEmbedding):
            layer.quant_method = PlainEmbeddingMethod()


def make_products_batch_invariant(model: torch.nn.Module, product: BatchInvariantLinear) -> None:
    """Have every layer multiply with `product`, on CPU."""
    for layer in model.modules():
        if isinstance(layer, LinearBase):
            layer.quant_method = BatchInvariantLinearMethod(product)
        elif isinstance(layer, VocabParallelEmbedding):
            layer.quant_method = BatchInvariantEmbeddingMethod(product)


def _parts(counts_K: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of scenes, each of at most so many patches, or of one scene."""
    first = held = 0
    for k, count in enumerate(counts_K):
        if held and held + count > most:
            yield first, k
            first, held = k, 0
        held += count
    yield first, len(counts_K)


def _one_by_one(fields: Mapping[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """The fields of each item by itself."""
    first_patch = first_scene = 0
    for index, (patches, scenes, *_) in enumerate(fields["shapes"].tolist()):
        yield {
            "patches": fields["patches"][first_patch : first_patch + patches],
            "scene_lengths": fields["scene_lengths"][first_scene : first_scene + scenes],
            "shapes": fields["shapes"][index : index + 1],
        }
        first_patch, first_scene = first_patch + patches, first_scene + scenes
