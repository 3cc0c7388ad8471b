"""The clip of an episode as its tools see it: frames and regions of it, and what they cost in tokens.

Legend: T frames · H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from envs.initial_observation import Clip, VideoReader, decode, unseen_frames
from envs.prompts import VideoProcessor, inserted_text
from envs.tools.tool import Box, Shown
from rl.trajectory import VideoTask

WHOLE = 1000.0  # thousandths


class EpisodeClip:
    """An `envs.tools.tool.ClipView` of a task's clip."""

    def __init__(self, task: VideoTask, clip: Clip, processor: VideoProcessor, reader: VideoReader) -> None:
        """
        Args:
            clip: what is known of it.
        """
        self._task, self._clip, self._processor, self._reader = task, clip, processor, reader

    @property
    def path(self) -> str:
        """Absolute."""
        return self._task.video_path

    @property
    def extra(self) -> Mapping[str, Any]:
        """Further columns of the task's row."""
        return self._task.extra

    @property
    def duration_s(self) -> float:
        """Seconds."""
        return self._clip.duration_s

    @property
    def native_fps(self) -> float:
        """Not positive or not finite: not known."""
        return self._clip.native_fps

    @property
    def height(self) -> int:
        """Of a frame as it is displayed."""
        return self._clip.height

    @property
    def width(self) -> int:
        """Likewise."""
        return self._clip.width

    def frames(self, times_s: Sequence[float], max_pixels: int) -> Shown:
        """The frames on screen.

        Raises:
            VideoError: the clip cannot be read.
        """
        return Shown(*decode(self._reader, self.path, times_s, self._fit(max_pixels)))

    def frames_tokens(self, times_s: Sequence[float], max_pixels: int) -> int:
        """As if each were a scene of its own."""
        return len(self._processor.video_block(unseen_frames(times_s, self._fit(max_pixels))))

    def image(self, time_s: float, box: Box, max_pixels: int) -> Shown:
        """A region of the frame on screen as a scene of repeated frames, as images are shown in fine-tuning.

        Raises:
            VideoError: the clip cannot be read.
        """
        moment_s = min(time_s, self.duration_s)
        pixels_THWC, shown_s_T = decode(self._reader, self.path, (moment_s,), (self.height, self.width))
        left, top, right, bottom = self._rectangle(box)
        return self.picture(pixels_THWC[0, top:bottom, left:right], shown_s_T[0], max_pixels)

    def image_tokens(self, box: Box, max_pixels: int) -> int:
        """Of one scene."""
        left, top, right, bottom = self._rectangle(box)
        return self.picture_tokens(bottom - top, right - left, max_pixels)

    def picture(self, pixels_HWC: np.ndarray, time_s: float, max_pixels: int) -> Shown:
        """A picture as a scene of repeated frames."""
        height, width = self._picture_size(*pixels_HWC.shape[:2], max_pixels)
        resized = Image.fromarray(pixels_HWC).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        count = self._processor.image_frames
        return Shown(np.repeat(np.asarray(resized, dtype=np.uint8)[None], count, axis=0), (time_s,) * count)

    def picture_tokens(self, height: int, width: int, max_pixels: int) -> int:
        """Of one scene."""
        scene = unseen_frames((self.duration_s,), self._picture_size(height, width, max_pixels))  # the longest time
        return len(self._processor.video_block(scene))

    def text_tokens(self, text: str) -> int:
        """As it is inserted."""
        return len(inserted_text(text, self._processor))

    def _fit(self, max_pixels: int) -> tuple[int, int]:
        return self._processor.fit(self.height, self.width, max_pixels)

    def _picture_size(self, height: int, width: int, max_pixels: int) -> tuple[int, int]:
        """HW: of this shape, the area near `max_pixels`."""
        scale = math.sqrt(max_pixels / (height * width))
        return self._processor.fit(max(1, round(height * scale)), max(1, round(width * scale)), max_pixels)

    def _rectangle(self, box: Box) -> tuple[int, int, int, int]:
        """Whole pixels that the box touches: left, top, right, bottom."""
        left, right = (side / WHOLE * self.width for side in box[::2])
        top, bottom = (side / WHOLE * self.height for side in box[1::2])
        return math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)
