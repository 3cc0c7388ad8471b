"""Videos as vLLM takes them: packed scenes as multimodal items, found in prompts that are expanded already.

Differs from stock: items arrive packed (no Hugging Face video processor), and prompts with their placeholders.

Legend: I video items · N patches · D values of a patch · K scenes · T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from transformers import BatchFeature
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import ModalityDataItems, MultiModalDataItems, MultiModalDataParser, ProcessorBatchItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdate,
)
from vllm.multimodal.processing.processor import PlaceholderFeaturesInfo

from rl.policy.families import BY_MODEL_TYPE, Markers
from rl.policy.geometry import PackedVideo
from rl.policy.layout import find_marked, marked_counts

VIDEO = "video"
DUMMY_GRID = 16  # patches along each side of the frames vLLM measures memory with

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
        marked = self.tokens_per_dummy_scene() + (2 if self.markers() is Markers.AROUND_SCENE else 0)
        return max(1, (self.ctx.model_config.max_model_len - 2) // marked)

    def markers(self) -> Markers:
        """Where the family puts them."""
        return BY_MODEL_TYPE[self.get_hf_config().model_type].markers

    def tokens_per_dummy_scene(self) -> int:
        return (DUMMY_GRID // self.get_hf_config().vision_config.spatial_merge_size) ** 2


class SceneDummyInputs(BaseDummyInputsBuilder[SceneProcessingInfo]):
    """One video as long as the context, for vLLM's memory measurement at start."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        scene = "<|video_pad|>" * self.info.tokens_per_dummy_scene()
        scenes = self.info.largest_scenes()
        if self.info.markers() is Markers.AROUND_SCENE:
            return f"<|vision_start|>{scene}<|vision_end|>" * (scenes * mm_counts.get(VIDEO, 0))
        return f"<|vision_start|>{scene * scenes}<|vision_end|>" * mm_counts.get(VIDEO, 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: object) -> dict[str, list]:
        scenes = self.info.largest_scenes()
        values = 3 * self.info.get_hf_config().vision_config.patch_size ** 2
        patches_ND = np.zeros((scenes * DUMMY_GRID**2, values), dtype=np.uint8)
        video = PackedVideo(patches_ND, (1,) * scenes, DUMMY_GRID, DUMMY_GRID, tuple(map(float, range(scenes))))
        return {VIDEO: [partial(_itself, video)] * mm_counts.get(VIDEO, 0)}


def _itself(video: PackedVideo) -> PackedVideo:
    """vLLM pickles dummy inputs to name them, so their packer must be one that can be pickled."""
    return video


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
                "scene_times": torch.tensor(
                    [time_s for video in videos for time_s in video.times_s_K], dtype=torch.float64
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
            "scene_times": MultiModalFieldConfig.flat_from_sizes(VIDEO, scenes_I, keep_on_cpu=True),
            "shapes": MultiModalFieldConfig.batched(VIDEO, keep_on_cpu=True),
        }

    def _get_prompt_updates(
        self, mm_items: MultiModalDataItems, hf_processor_mm_kwargs: object, out_mm_kwargs: MultiModalKwargsItems
    ) -> Sequence[PromptUpdate]:
        """The marked placeholders of each item; cached with it. Nothing is ever replaced."""
        config, markers = self.info.get_hf_config(), self.info.markers()

        def marked(item: int) -> list[int]:
            _, scenes, grid_h, grid_w = out_mm_kwargs[VIDEO][item]["shapes"].data.tolist()
            tokens = grid_h * grid_w // config.vision_config.spatial_merge_size**2
            counts = marked_counts(scenes, tokens, markers)
            return [token for n in counts for token in (config.vision_start_token_id, *[config.video_token_id] * n)]

        return [PromptReplacement(modality=VIDEO, target=[config.video_token_id], replacement=marked)]

    def _apply_prompt_updates(
        self, token_ids: list[int], mm_prompt_updates: Mapping[str, Sequence]
    ) -> tuple[list[int], Mapping[str, list[PlaceholderFeaturesInfo]]]:
        """The prompt as it is, and where its videos stand.

        Raises:
            ValueError: blocks and items differ in number, or a block's placeholders and its item's tokens do.
        """
        config = self.info.get_hf_config()
        start, pad = config.vision_start_token_id, config.video_token_id
        counts_IM = [_counts(updates[0].content.full, start) for updates in mm_prompt_updates.get(VIDEO, ())]
        found = [
            PlaceholderFeaturesInfo(VIDEO, item, first, token_ids[first:stop], torch.from_numpy(is_pad))
            for item, (first, stop, is_pad) in enumerate(find_marked(token_ids, counts_IM, start, pad))
        ]
        return token_ids, ({VIDEO: found} if found else {})


def _counts(marked: Sequence[int], vision_start: int) -> list[int]:
    """Placeholders behind each marker."""
    starts = [place for place, token in enumerate(marked) if token == vision_start]
    return [stop - start - 1 for start, stop in zip(starts, [*starts[1:], len(marked)], strict=True)]
