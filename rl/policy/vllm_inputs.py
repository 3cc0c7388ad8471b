"""Videos as vLLM takes them: packed scenes as multimodal items, found in prompts that are expanded already.

Differs from stock: items arrive packed (no Hugging Face video processor), and prompts with their placeholders.

Legend: I video items · N patches · D values of a patch · K scenes · T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

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

from rl.policy.geometry import PackedVideo

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
