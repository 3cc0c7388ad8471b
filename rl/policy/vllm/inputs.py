"""Videos as vLLM takes them: packed scenes as multimodal items, and where they stand in prompts.

Differs from stock: no Hugging Face video processor. In training items arrive as packers, under names of their own, and
prompts with their blocks written out. Users send frames with their times or files, and prompts as chat templates leave
them, with one placeholder per video: both become what training has.

Legend: I video items · N patches · D values of a patch · K scenes · T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial

import numpy as np
import torch
from transformers import BatchFeature
from vllm.exceptions import VLLMValidationError
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

from rl.policy.episode_settings import EpisodeSettings
from rl.policy.families import BY_MODEL_TYPE, Markers
from rl.policy.geometry import PackedVideo
from rl.policy.given_frames import UnusableVideoError, is_frames
from rl.policy.layout import counts_in, expand_blocks, find_marked
from rl.policy.policy_folder import scenes_of
from rl.policy.positions import SceneClock
from rl.policy.processor import Processor
from rl.policy.vllm.videos import frames_of

VIDEO = "video"
NO_IMAGES = (
    "images are not taken: the policy reads video; send one as a video of one frame, "
    "(frames of shape (1, H, W, 3), {'times_s': [0.0]})"
)
WHO_SAYS = (
    "how large frames are and how many is said by the policy's folder (processor_config.json) and by media_io_kwargs"
)
DUMMY_GRID = 16  # patches along each side of the frames vLLM measures memory with

Packer = Callable[[], PackedVideo]  # packs a video when it is needed: not at all when the engine has it cached


class SceneItems(ProcessorBatchItems[Packer | None]):
    """The videos of one prompt, not packed yet; None where a request names one by its uuid alone."""

    def __init__(self, packers: Sequence[Packer | None], digests: Sequence[str | None]) -> None:
        """
        Args:
            digests: of users' videos, which bring no name of their own: what they are cached under.
        """
        super().__init__(packers, VIDEO)
        self._digests = digests

    def get_item_for_hash(self, index: int) -> object:
        return self._digests[index] or self.data[index]


class SceneParser(MultiModalDataParser):
    """Takes videos: packers, or what users send (see rl.policy.vllm.videos). Images are refused by name."""

    def __init__(self, processor: Processor, max_pixels: int) -> None:
        super().__init__()
        self._processor, self._max_pixels = processor, max_pixels

    def _parse_video_data(self, data: object) -> ModalityDataItems | None:
        videos = data if isinstance(data, list) and not is_frames(data) else [data]
        parsed = [self._parse(video) for video in videos]
        return SceneItems([packer for packer, _ in parsed], [digest for _, digest in parsed])

    def _parse_image_data(self, data: object) -> ModalityDataItems | None:
        raise UnusableVideoError(NO_IMAGES)

    def _parse(self, video: object) -> tuple[Packer | None, str | None]:
        if video is None or callable(video):
            return video, None
        frames = frames_of(video, self._processor, self._max_pixels)
        return partial(self._processor.pack, frames), frames.digest


class SceneProcessingInfo(BaseProcessingInfo):
    """What vLLM needs to know beforehand."""

    def get_data_parser(self) -> MultiModalDataParser:
        return SceneParser(self.processor, EpisodeSettings.of(self.processor.folder).coarse.max_pixels)

    @cached_property
    def processor(self) -> Processor:
        """Text to ids and frames to blocks, as the policy was trained with."""
        return Processor.from_pretrained(self.ctx.model_config.model, scenes_of(self.get_hf_config()))

    def validate_num_items(self, modality: str, num_items: int) -> None:
        if modality == "image":
            raise VLLMValidationError(NO_IMAGES, parameter=modality)
        super().validate_num_items(modality, num_items)

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

    def _apply_hf_processor_main(self, mm_items: MultiModalDataItems, hf_kwargs: Mapping[str, object]) -> BatchFeature:
        if hf_kwargs:
            raise UnusableVideoError(f"mm_processor_kwargs {sorted(hf_kwargs)} are not read here; {WHO_SAYS}")
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
            # kept here, for they go to the GPU a part at a time (SceneEngine.encode)
            "patches": MultiModalFieldConfig.flat_from_sizes(VIDEO, patches_I, keep_on_cpu=True),
            "scene_lengths": MultiModalFieldConfig.flat_from_sizes(VIDEO, scenes_I, keep_on_cpu=True),
            "scene_times": MultiModalFieldConfig.flat_from_sizes(VIDEO, scenes_I, keep_on_cpu=True),
            "shapes": MultiModalFieldConfig.batched(VIDEO, keep_on_cpu=True),
        }

    def _get_prompt_updates(
        self, mm_items: MultiModalDataItems, hf_processor_mm_kwargs: object, out_mm_kwargs: MultiModalKwargsItems
    ) -> Sequence[PromptUpdate]:
        """The block of each item, as it stands where a prompt has it; cached with the item."""
        processor = self.info.processor

        def block(item: int) -> list[int]:
            fields = out_mm_kwargs[VIDEO][item]
            _, _, grid_h, grid_w = fields["shapes"].data.tolist()
            clock = SceneClock(tuple(fields["scene_times"].data.tolist()), grid_h, grid_w, processor.geometry.merge)
            return processor.block_at(clock)

        return [PromptReplacement(modality=VIDEO, target=[processor.ids.video_pad], replacement=block)]

    def _apply_prompt_updates(
        self, token_ids: list[int], mm_prompt_updates: Mapping[str, Sequence]
    ) -> tuple[list[int], Mapping[str, list[PlaceholderFeaturesInfo]]]:
        """The prompt, its blocks written out where a chat template left one placeholder, and where its videos stand.

        Raises:
            ValueError: blocks and items differ in number, or a block's placeholders and its item's tokens do.
        """
        ids = self.info.processor.ids
        blocks = [updates[0].content.full for updates in mm_prompt_updates.get(VIDEO, ())]
        token_ids = expand_blocks(token_ids, blocks, ids)
        counts_IM = [counts_in(block, ids) for block in blocks]
        found = [
            PlaceholderFeaturesInfo(VIDEO, item, first, token_ids[first:stop], torch.from_numpy(is_pad))
            for item, (first, stop, is_pad) in enumerate(
                find_marked(token_ids, counts_IM, ids.vision_start, ids.video_pad)
            )
        ]
        return token_ids, ({VIDEO: found} if found else {})
