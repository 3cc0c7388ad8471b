"""FlexiVideo inside vLLM: what the families' models have in common. Video items are packed scenes with their own clock.

Differs from stock in three places: patches are embedded by the shared FlexiPatchEmbed, positions come from the shared
`mrope_positions`, and tokens a policy may not write are masked in `compute_logits`, so sampled and prompt log-probs are
of the same distribution the learner normalises over. Inputs are those of rl.policy.vllm.inputs.

Legend: N patches · D values of a patch · K scenes · T tokens · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod, VocabParallelEmbedding
from vllm.multimodal.inputs import MultiModalFeatureSpec

from rl.policy.batch_invariant import PADDINGS, BatchInvariantLinear
from rl.policy.patch_embed import make_patch_embed
from rl.policy.policy_folder import scenes_of
from rl.policy.positions import SceneClock, mrope_positions
from rl.policy.processor import Processor
from rl.policy.vllm.inputs import VIDEO
from rl.policy.vllm.plugin import BATCH_INVARIANT


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
        self._banned_ids = torch.from_numpy(np.flatnonzero(~processor.allowed_token_mask()))
        self.encoded_items = 0  # by the vision tower
        self.product = BatchInvariantLinear(PADDINGS[0]) if vllm_config.additional_config.get(BATCH_INVARIANT) else None
        keep_weights_plain(model)
        if self.product:
            make_products_batch_invariant(model, self.product)

    def encode(self, fields: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Visual tokens of each item, in order; one run of the tower for all of them, or one each (BATCH_INVARIANT).

        Where the tower has DeepStack's levels, they stand beside the embeddings: (tokens, E * (1 + levels)).
        """
        if self.product and len(fields["shapes"]) > 1:
            return tuple(tokens for alone in _one_by_one(fields) for tokens in self.encode(alone))
        shapes = fields["shapes"].tolist()
        per_scene = [grid_h * grid_w for _, scenes, grid_h, grid_w in shapes for _ in range(scenes)]
        patches_ND = fields["patches"].to(self._visual.device)
        embedded = self._visual.patch_embed(patches_ND, fields["scene_lengths"].tolist(), per_scene)
        grids = [[scenes, grid_h, grid_w] for _, scenes, grid_h, grid_w in shapes]
        self.encoded_items += len(grids)
        merge = self._geometry.merge**2
        return self._visual(embedded, grid_thw=grids).split([t * h * w // merge for t, h, w in grids])

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

    def _clock(self, feature: MultiModalFeatureSpec) -> SceneClock:
        _, _, grid_h, grid_w = feature.data["shapes"].data.tolist()
        times_s_K = tuple(feature.data["scene_times"].data.tolist())
        return SceneClock(times_s_K, grid_h, grid_w, self._geometry.merge)


class ScenePolicy(torch.nn.Module):
    """What stands before the stock class in a family's: an engine for scenes, and the calls of vLLM that ask it."""

    supports_mm_device_do_normalize = False  # or vLLM normalises our embeddings again

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
