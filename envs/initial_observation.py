"""The initial observation: which coarse frames a policy sees first, how large, and the prompt around them.

Decoded, cut into scenes and turned into a prompt once per group; siblings share it.

Legend: T frames · HW pixels.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from envs.prompts import PromptFormat, VideoProcessor, initial_prompt
from rl.trajectory import Frames, PackedInts, VideoTask

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

NOT_LOOKED_AT = (0, 0)  # the size of frames that nobody will ask for


class Clip(Protocol):
    """What is known of a video before a frame of it is decoded."""

    @property
    def duration_s(self) -> float: ...
    @property
    def native_fps(self) -> float: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...


class VideoReader(Protocol):
    """What the environment needs of envs.video.reader. Both raise a VideoError for an unreadable video."""

    def describe(self, path: str) -> Clip:
        """Length, rate and display size."""

    def frames(
        self,
        path: str,
        times_s: Sequence[float],
        size_HW: tuple[int, int],
        later_HW: tuple[int, int] | None = None,
    ) -> tuple[np.ndarray, tuple[float, ...], int]:
        """The frame on screen at each time: pixels (T, H, W, 3) uint8, presentation times, how many stand in for
        damaged ones. Later requests will be of the size `later_HW`; None: of the same; NOT_LOOKED_AT: none.
        """


@dataclass(frozen=True, slots=True)
class CoarseFrameRules:
    """Uniform over the whole clip at `fps`, between `min_frames` and `max_frames`."""

    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 64
    max_pixels: int = 151_200  # per frame
    max_visual_tokens: int = 8_192  # of the whole block, even if every frame becomes its own scene

    def __post_init__(self) -> None:
        if not (self.fps > 0 and 1 <= self.min_frames <= self.max_frames and self.max_visual_tokens >= 1):
            raise ValueError(f"fps and max_visual_tokens must be > 0 and 1 <= min_frames <= max_frames, got {self}")


@dataclass(frozen=True, slots=True)
class InitialObservation:
    """What all siblings of a group begin with."""

    frames: Frames
    token_ids: tuple[int, ...]  # of the initial prompt, the video expanded
    clip: Clip
    decode_s: float
    segment_s: float


def make_initial_observation(
    task: VideoTask,
    *,
    processor: VideoProcessor,
    reader: VideoReader,
    rules: CoarseFrameRules,
    form: PromptFormat,
    look_pixels: int | None = None,
) -> InitialObservation:
    """Decode the coarse frames, cut them into scenes and write the initial prompt.

    Args:
        look_pixels: of a frame at most, in the looks that may follow: the reader keeps frames of that size. None: as
            the coarse ones; 0: none will follow.
    Raises:
        VideoError: the video cannot be read.
    """
    started = time.perf_counter()
    clip, pixels_THWC, shown_s_T = decode_coarse(
        task.video_path, processor=processor, reader=reader, rules=rules, look_pixels=look_pixels
    )
    decoded = time.perf_counter()
    frames = processor.make_frames(pixels_THWC, shown_s_T)
    token_ids = PackedInts.of(initial_prompt(task.question, frames, processor, form))  # one object in all siblings
    return InitialObservation(frames, token_ids, clip, decoded - started, time.perf_counter() - decoded)


def decode_coarse(
    path: str,
    *,
    processor: VideoProcessor,
    reader: VideoReader,
    rules: CoarseFrameRules,
    look_pixels: int | None = None,
) -> tuple[Clip, np.ndarray, tuple[float, ...]]:
    """A clip, and its coarse frames: pixels and presentation times.

    Args:
        look_pixels: as in `make_initial_observation`.
    Raises:
        VideoError: the video cannot be read.
    """
    clip = reader.describe(path)
    times_s_T = coarse_frame_times(clip.duration_s, clip.native_fps, rules)
    times_s_T, size = fit_visual_tokens(times_s_T, clip, processor, rules)
    look_size = NOT_LOOKED_AT if look_pixels == 0 else size
    if look_pixels:
        look_size = processor.fit(clip.height, clip.width, look_pixels)
    return clip, *decode(reader, path, times_s_T, size, look_size)


def decode(
    reader: VideoReader,
    path: str,
    times_s_T: Sequence[float],
    size_HW: tuple[int, int],
    later_HW: tuple[int, int] | None = None,
) -> tuple[np.ndarray, tuple[float, ...]]:
    """Pixels and presentation times of the frames on screen; where neighbours stand in for damaged ones, it is logged.

    Raises:
        VideoError: the video cannot be read.
    """
    expected = () if later_HW in (None, size_HW) else (later_HW,)
    pixels_THWC, shown_s_T, damaged = reader.frames(path, times_s_T, size_HW, *expected)
    if damaged:
        log.warning("%s: %d of %d frames are damaged, their neighbours stand in", path, damaged, len(shown_s_T))
    return pixels_THWC, shown_s_T


def coarse_frame_times(duration_s: float, native_fps: float, rules: CoarseFrameRules) -> tuple[float, ...]:
    """The T asked times: i * duration / T, T = floor(duration * fps) within the limits.

    A clip with fewer frames than `min_frames` is not shown any of them twice.
    """
    native_frames = max(1, round(duration_s * native_fps)) if native_fps > 0 else rules.max_frames
    wanted = max(rules.min_frames, math.floor(duration_s * rules.fps + 1e-6))
    num_frames = min(wanted, rules.max_frames, native_frames)
    return tuple(i * duration_s / num_frames for i in range(num_frames))


def fit_visual_tokens(
    times_s_T: tuple[float, ...], clip: Clip, processor: VideoProcessor, rules: CoarseFrameRules
) -> tuple[tuple[float, ...], tuple[int, int]]:
    """Keep the block within its token budget: smaller frames first, fewer frames only when they cannot shrink further.

    Coarse frames are for finding out *when*; details are what retrieval is for. So time is the last to be given up.
    """
    size = processor.fit(clip.height, clip.width, rules.max_pixels)
    tokens_per_frame = processor.visual_tokens(unseen_frames(times_s_T[:1], size))
    if len(times_s_T) * tokens_per_frame <= rules.max_visual_tokens:
        return times_s_T, size
    num_frames = min(len(times_s_T), rules.max_visual_tokens)
    pixels_per_token = size[0] * size[1] // tokens_per_frame
    size = processor.fit(clip.height, clip.width, rules.max_visual_tokens // num_frames * pixels_per_token)
    return tuple(i * clip.duration_s / num_frames for i in range(num_frames)), size


def unseen_frames(times_s_T: Sequence[float], size: tuple[int, int]) -> Frames:
    """A block without pixels in which every frame is a scene of its own: the most tokens these times can take."""
    return Frames(None, tuple(times_s_T), (1,) * len(times_s_T), *size, digest="")
