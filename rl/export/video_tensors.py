"""Videos as tensors, as an exported processor gives them and `generate` hands them on; and back to packed videos.

    patches        uint8 (N, D)   every patch of every video, video after video
    scene_lengths  (K,)           frames of each scene
    shapes         (I, 4)         of each video: patches, scenes, grid_h, grid_w

Legend: B sequences · T tokens · I videos · K scenes · N patches · D values of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from rl.policy.geometry import PackedVideo
from rl.policy.video_policy import VideoPolicy

VIDEO_TENSORS = ("patches", "scene_lengths", "shapes")


def to_tensors(videos: Sequence[PackedVideo]) -> dict[str, torch.Tensor]:
    """The videos of a batch, in order; {} without any."""
    if not videos:
        return {}
    return {
        "patches": torch.from_numpy(np.concatenate([video.patches_ND for video in videos])),
        "scene_lengths": torch.tensor([length for video in videos for length in video.scene_lengths]),
        "shapes": torch.tensor([(len(v.patches_ND), v.num_scenes, v.grid_h, v.grid_w) for v in videos]),
    }


def from_tensors(patches: torch.Tensor, scene_lengths: torch.Tensor, shapes: torch.Tensor) -> list[PackedVideo]:
    """The videos again; of their times only positions tell."""
    lengths, sizes = scene_lengths.tolist(), shapes.tolist()
    of_each = patches.cpu().numpy()
    videos, first_patch, first_scene = [], 0, 0
    for num_patches, num_scenes, grid_h, grid_w in sizes:
        patches_ND = of_each[first_patch : first_patch + num_patches]
        scenes_K = tuple(lengths[first_scene : first_scene + num_scenes])
        videos.append(PackedVideo(patches_ND, scenes_K, grid_h, grid_w, (0.0,) * num_scenes))
        first_patch, first_scene = first_patch + num_patches, first_scene + num_scenes
    return videos


class VideoTensors(VideoPolicy):
    """A policy that takes its videos as tensors. It stands before a family's class of the learner."""

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        patches: torch.Tensor | None = None,
        scene_lengths: torch.Tensor | None = None,
        shapes: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        past_key_values: object | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **_: object,
    ) -> CausalLMOutputWithPast:
        """Logits (B, T, V) of what the folder's processor has prepared; `model(**inputs)`, `model.generate(**inputs)`.

        Args:
            position_ids: (3, B, T), the processor's: they hold the scenes' times and are never guessed.
            labels: (B, T); if given, `loss` is the mean cross-entropy of those that are not -100, each given what is
                before it.
        Raises:
            ValueError: no positions, or placeholders and videos do not match.
        """
        first = past_key_values is None or past_key_values.get_seq_length() == 0
        videos = from_tensors(patches, scene_lengths, shapes) if patches is not None and first else ()
        output = super().forward(
            input_ids,
            attention_mask,
            position_ids,
            videos,
            past_key_values=past_key_values,
            use_cache=bool(use_cache),
            logits_to_keep=logits_to_keep,
        )
        if labels is not None:
            output["loss"] = self.loss_function(output.logits, labels, self.config.text_config.vocab_size)
        return output

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.Tensor | None = None,
        **inputs: Any,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Each sequence and its videos `expand_size` times; transformers would repeat patches one by one."""
        tensors = {name: inputs.pop(name) for name in VIDEO_TENSORS if inputs.get(name) is not None}
        expanded, others = super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **inputs)
        if tensors and expand_size > 1:
            videos, repeated, merge = from_tensors(**tensors), [], self.config.vision_config.spatial_merge_size**2
            waiting = iter(videos)
            for pads in (input_ids == self.config.video_token_id).sum(1).tolist():
                of_row = []
                while pads > 0:
                    of_row.append(video := next(waiting))
                    pads -= video.num_scenes * video.patches_per_frame // merge
                repeated += of_row * expand_size
            tensors = {name: tensor.to(input_ids.device) for name, tensor in to_tensors(repeated).items()}
        return expanded, others | tensors
