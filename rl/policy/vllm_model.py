"""FlexiVideo inside vLLM: Qwen2.5-VL whose video items are packed scenes with their own clock.

Differs from stock in four places: items arrive packed (no Hugging Face video processor), prompts arrive with their
placeholders already expanded, patches are embedded by the shared FlexiPatchEmbed, and positions come from the shared
`mrope_positions`. Tokens a policy may not write are masked in `compute_logits`, so sampled and prompt log-probs are of
the same distribution the learner normalises over.

Legend: I video items · N patches · D values of a patch · K scenes · T tokens · V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from transformers import BatchFeature
from vllm.config import VllmConfig
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod, VocabParallelEmbedding
from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFeatureSpec, MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import ModalityDataItems, MultiModalDataItems, MultiModalDataParser, ProcessorBatchItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdate,
)
from vllm.multimodal.processing.processor import PlaceholderFeaturesInfo

from rl.policy.batch_invariant import batch_invariant_linear, varying_shapes
from rl.policy.model import make_patch_embed, scenes_of
from rl.policy.positions import SceneClock, mrope_positions
from rl.policy.processor import PackedVideo, Processor
from rl.policy.vllm_plugin import BATCH_INVARIANT

VIDEO = "video"
DUMMY_GRID = 16  # patches along each side of the frames vLLM measures memory with
FUSED = {  # Hugging Face's name -> vLLM's fused parameter, and which part of it
    "q_proj": ("qkv_proj", 0),
    "k_proj": ("qkv_proj", 1),
    "v_proj": ("qkv_proj", 2),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}

Packer = Callable[[], PackedVideo]  # packs a video when it is needed: not at all when the engine has it cached


class SceneItems(ProcessorBatchItems[Packer]):
    """The videos of one prompt, not packed yet."""

    def __init__(self, packers: Sequence[Packer]) -> None:
        super().__init__(packers, VIDEO)


class SceneParser(MultiModalDataParser):
    """Accepts packers under `video` and nothing else."""

    def _parse_video_data(self, data: Sequence[Packer]) -> ModalityDataItems | None:
        return SceneItems(data)


class SceneProcessingInfo(BaseProcessingInfo):
    """What vLLM needs to know beforehand."""

    def get_data_parser(self) -> MultiModalDataParser:
        return SceneParser()

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {VIDEO: None}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        return {VIDEO: self.largest_scenes() * self.tokens_per_dummy_scene()}

    def largest_scenes(self) -> int:
        """Scenes of the largest dummy video a whole context holds."""
        return max(1, (self.ctx.model_config.max_model_len - 2) // self.tokens_per_dummy_scene())

    def tokens_per_dummy_scene(self) -> int:
        return (DUMMY_GRID // self.get_hf_config().vision_config.spatial_merge_size) ** 2


class SceneDummyInputs(BaseDummyInputsBuilder[SceneProcessingInfo]):
    """One video as long as the context, for vLLM's memory measurement at start."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        pads = "<|video_pad|>" * (self.info.largest_scenes() * self.info.tokens_per_dummy_scene())
        return f"<|vision_start|>{pads}<|vision_end|>" * mm_counts.get(VIDEO, 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: object) -> dict[str, list]:
        scenes = self.info.largest_scenes()
        values = 3 * self.info.get_hf_config().vision_config.patch_size ** 2
        patches_ND = np.zeros((scenes * DUMMY_GRID**2, values), dtype=np.uint8)
        video = PackedVideo(patches_ND, (1,) * scenes, DUMMY_GRID, DUMMY_GRID, tuple(map(float, range(scenes))))
        return {VIDEO: [lambda: video] * mm_counts.get(VIDEO, 0)}


class SceneProcessor(BaseMultiModalProcessor[SceneProcessingInfo]):
    """Turns packed scenes into tensors, and finds them in prompts that are expanded already."""

    def _apply_hf_processor_main(self, mm_items: MultiModalDataItems, *_: object, **__: object) -> BatchFeature:
        videos = [pack() for pack in mm_items[VIDEO].get_all()] if VIDEO in mm_items else []
        if not videos:
            return BatchFeature()
        return BatchFeature(
            {
                "patches": torch.from_numpy(np.concatenate([video.patches_ND for video in videos])),
                "scene_lengths": torch.tensor([length for video in videos for length in video.scene_lengths]),
                "scene_starts": torch.tensor(
                    [start_s for video in videos for start_s in video.start_s_K], dtype=torch.float64
                ),
                "shapes": torch.tensor(
                    [(len(video.patches_ND), video.num_scenes, video.grid_h, video.grid_w) for video in videos]
                ),
            }
        )

    def _get_mm_fields_config(self, hf_inputs: BatchFeature, *_: object) -> Mapping[str, MultiModalFieldConfig]:
        if "shapes" not in hf_inputs:
            return {}
        patches_I, scenes_I = hf_inputs["shapes"][:, 0], hf_inputs["shapes"][:, 1]
        return {
            "patches": MultiModalFieldConfig.flat_from_sizes(VIDEO, patches_I),
            "scene_lengths": MultiModalFieldConfig.flat_from_sizes(VIDEO, scenes_I, keep_on_cpu=True),
            "scene_starts": MultiModalFieldConfig.flat_from_sizes(VIDEO, scenes_I, keep_on_cpu=True),
            "shapes": MultiModalFieldConfig.batched(VIDEO, keep_on_cpu=True),
        }

    def _get_prompt_updates(
        self, mm_items: MultiModalDataItems, hf_processor_mm_kwargs: object, out_mm_kwargs: MultiModalKwargsItems
    ) -> Sequence[PromptUpdate]:
        """How many placeholders each item has; cached with it. Nothing is ever replaced."""
        config = self.info.get_hf_config()

        def placeholders(item: int) -> list[int]:
            _, scenes, grid_h, grid_w = out_mm_kwargs[VIDEO][item]["shapes"].data.tolist()
            return [config.video_token_id] * (scenes * grid_h * grid_w // config.vision_config.spatial_merge_size**2)

        return [PromptReplacement(modality=VIDEO, target=[config.video_token_id], replacement=placeholders)]

    def _apply_prompt_updates(
        self, token_ids: list[int], mm_prompt_updates: Mapping[str, Sequence]
    ) -> tuple[list[int], Mapping[str, list[PlaceholderFeaturesInfo]]]:
        """The prompt as it is, and where its videos stand.

        Raises:
            ValueError: blocks and items differ in number, or a block's placeholders and its item's tokens do.
        """
        expected_I = [len(updates[0].content.full) for updates in mm_prompt_updates.get(VIDEO, ())]
        config = self.info.get_hf_config()
        blocks = video_blocks(token_ids, expected_I, config.vision_start_token_id, config.video_token_id)
        found = [
            PlaceholderFeaturesInfo(VIDEO, item, start, token_ids[start:stop], is_embed)
            for item, (start, stop, is_embed) in enumerate(blocks)
        ]
        return token_ids, ({VIDEO: found} if found else {})


def video_blocks(
    token_ids: Sequence[int], expected_I: Sequence[int], vision_start: int, video_pad: int
) -> list[tuple[int, int, torch.Tensor]]:
    """Where each video stands: from <|vision_start|> to its last placeholder, and which tokens are placeholders.

    Scene times, written as text inside a block, belong to it but carry no embedding of the video.

    Args:
        expected_I: visual tokens of each item, in order.
    Raises:
        ValueError: the prompt's placeholders are not those of the items; nothing is expanded or cut to make them fit.
    """
    ids_T = np.asarray(token_ids)  # numpy: every request passes here, and torch takes four times as long
    is_pad_T = ids_T == video_pad
    starts, pads = np.flatnonzero(ids_T == vision_start), np.flatnonzero(is_pad_T)
    found = np.bincount(np.searchsorted(starts, pads, side="right"), minlength=len(starts) + 1).tolist()
    if found[0] or found[1:] != list(expected_I):
        raise ValueError(
            f"the prompt's video blocks hold {found[1:]} placeholders"
            f"{f' and {found[0]} stand outside any block' if found[0] else ''}, "
            f"but its {len(expected_I)} videos have {list(expected_I)} visual tokens: "
            "prompts must come with placeholders already expanded, one block per video, in order"
        )
    last_pads = pads[np.cumsum(found)[1:] - 1]
    return [
        (start, last + 1, torch.from_numpy(is_pad_T[start : last + 1]))
        for start, last in zip(starts.tolist(), last_pads.tolist(), strict=True)
    ]


@MULTIMODAL_REGISTRY.register_processor(SceneProcessor, info=SceneProcessingInfo, dummy_inputs=SceneDummyInputs)
class FlexiVideoForConditionalGeneration(Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL with FlexiVideo's encoder, clock and token mask. Counts the items its vision tower encodes."""

    supports_mm_device_do_normalize = False  # or vLLM normalises our embeddings again

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        scenes = scenes_of(self.config)
        processor = Processor.from_pretrained(vllm_config.model_config.model, scenes)
        vision = self.config.vision_config
        with self._mark_tower_model(vllm_config, {VIDEO}):
            self.visual.patch_embed = make_patch_embed(vision.hidden_size, vision.patch_size, scenes)
        self.banned_ids = torch.from_numpy(np.flatnonzero(~processor.allowed_token_mask()))
        self.token_ids = processor.ids
        self.tokens_per_second = processor.geometry.tokens_per_second
        self.encoded_items = 0
        self.batch_invariant = bool(vllm_config.additional_config.get(BATCH_INVARIANT))
        keep_weights_plain(self)
        if self.batch_invariant:
            make_products_batch_invariant(self)

    def embed_multimodal(self, **fields: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Visual tokens of each item, in order; one run of the tower for all of them, or one each (BATCH_INVARIANT)."""
        if self.batch_invariant and len(fields["shapes"]) > 1:
            return tuple(tokens for alone in _one_by_one(fields) for tokens in self.embed_multimodal(**alone))
        shapes = fields["shapes"].tolist()
        per_scene = [grid_h * grid_w for _, scenes, grid_h, grid_w in shapes for _ in range(scenes)]
        patches_ND = fields["patches"].to(self.visual.device)
        embedded = self.visual.patch_embed(patches_ND, fields["scene_lengths"].tolist(), per_scene)
        grids = [[scenes, grid_h, grid_w] for _, scenes, grid_h, grid_w in shapes]
        self.encoded_items += len(grids)
        merge = self.visual.spatial_merge_size**2
        return self.visual(embedded, grid_thw=grids).split([t * h * w // merge for t, h, w in grids])

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[MultiModalFeatureSpec]
    ) -> tuple[torch.Tensor, int]:
        """The learner's positions, and by how much generated tokens are ahead of their place in the sequence."""
        in_order = sorted(mm_features, key=lambda feature: feature.mm_position.offset)
        clocks = [self._clock(feature) for feature in in_order]
        positions_3T = mrope_positions(
            input_tokens, clocks, ids=self.token_ids, tokens_per_second=self.tokens_per_second
        )
        return torch.from_numpy(positions_3T), int(positions_3T.max()) + 1 - len(input_tokens)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Logits over the vocabulary; -inf where the policy may not write."""
        logits_TV = super().compute_logits(hidden_states)
        if logits_TV is not None:
            self.banned_ids = self.banned_ids.to(logits_TV.device)
            logits_TV.index_fill_(-1, self.banned_ids, -torch.inf)
        return logits_TV

    def _clock(self, feature: MultiModalFeatureSpec) -> SceneClock:
        _, _, grid_h, grid_w = feature.data["shapes"].data.tolist()
        start_s_K = tuple(feature.data["scene_starts"].data.tolist())
        return SceneClock(start_s_K, grid_h, grid_w, self.visual.spatial_merge_size)


class PlainEmbeddingMethod(UnquantizedEmbeddingMethod):
    """Embeddings and output head computed from the parameter itself."""

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """On CPU vLLM would multiply with a packed copy, and go on with it after the parameter has been replaced."""
        layer.cpu_linear = torch.nn.functional.linear


class BatchInvariantLinearMethod(UnquantizedLinearMethod):
    """A linear layer whose products do not depend on the batch, on CPU."""

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """As PlainEmbeddingMethod."""
        layer.cpu_linear = batch_invariant_linear


class BatchInvariantEmbeddingMethod(UnquantizedEmbeddingMethod):
    """Embeddings, and an output head likewise."""

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """As PlainEmbeddingMethod."""
        layer.cpu_linear = batch_invariant_linear


def keep_weights_plain(model: torch.nn.Module) -> None:
    """Have every layer compute from its parameters: packed copies could be neither updated in place nor read back."""
    for layer in model.modules():
        if isinstance(layer, LinearBase):
            layer._cpu_skip_gemm_dispatch = True
        elif isinstance(layer, VocabParallelEmbedding):
            layer.quant_method = PlainEmbeddingMethod()


def make_products_batch_invariant(model: torch.nn.Module) -> None:
    """Have every layer multiply with `batch_invariant_linear`, on CPU."""
    for layer in model.modules():
        if isinstance(layer, LinearBase):
            layer.quant_method = BatchInvariantLinearMethod()
        elif isinstance(layer, VocabParallelEmbedding):
            layer.quant_method = BatchInvariantEmbeddingMethod()


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


class LiveWeights:
    """Reads and writes the policy's parameters in a vLLM worker; vLLM mixes it into its own worker class."""

    def put_weights(self, flat: Sequence[tuple[str, str, Sequence[int], bytes]]) -> None:
        """Overwrite parameters in place.

        Args:
            flat: Hugging Face name, dtype, shape and bytes of each.
        Raises:
            ValueError: a name or shape is not the model's.
        """
        tensors = (torch.frombuffer(data, dtype=getattr(torch, dtype)).view(*shape) for _, dtype, shape, data in flat)
        self.get_model().load_weights(zip((name for name, *_ in flat), tensors, strict=True))

    def digest_weights(self, names: Sequence[str]) -> dict[str, str]:
        """sha256 of the bytes of live parameters, by Hugging Face name."""
        return {name: tensor_digest(live_tensor(self.get_model(), name)) for name in names}

    def varying_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the linear layers whose products depend on the batch even so (see `batch_invariant_linear`)."""
        layers = (LinearBase, VocabParallelEmbedding)
        return varying_shapes(layer.weight for layer in self.get_model().modules() if isinstance(layer, layers))

    def count_encoded_items(self) -> int:
        """Video items the vision tower has encoded since the start, the memory measurement's included."""
        return self.get_model().encoded_items

    def device_memory_mib(self) -> float:
        """What PyTorch keeps of this worker's accelerator, the KV cache and captured graphs included."""
        return torch.cuda.memory_reserved() / 2**20 if torch.cuda.is_available() else 0.0


def live_tensor(model: FlexiVideoForConditionalGeneration, name: str) -> torch.Tensor:
    """The part of the model's parameters that a Hugging Face name stands for: fused ones sliced, padding rows cut.

    Raises:
        KeyError: no such parameter.
        ValueError: parameters are spread over several workers.
    """
    path, _, leaf = model.hf_to_vllm_mapper.map_name(name).rpartition(".")
    parent, _, last = path.rpartition(".")
    fused, part = FUSED.get(last, (last, None))
    try:
        module = model.get_submodule(f"{parent}.{fused}")
        parameter = module.get_parameter(leaf)
    except AttributeError as error:
        raise KeyError(f"the engine's model has no parameter {name!r}") from error
    if getattr(module, "tp_size", 1) > 1:
        raise ValueError(f"{name}: cannot be read back, it is spread over {module.tp_size} workers")
    if part is not None:
        return parameter.data.split(module.output_partition_sizes)[part]
    rows = getattr(module, "org_vocab_size", len(parameter))
    return parameter.data[:rows]


def tensor_digest(tensor: torch.Tensor) -> str:
    """sha256 of a tensor's bytes, row-major."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()).hexdigest()
