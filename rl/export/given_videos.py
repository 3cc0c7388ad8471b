"""Videos as a stranger gives them to the exported processor: frames with their times, or a file, as frames of ours.

    (frames, {"fps": 2.0})                              frame i was on screen at i / fps
    (frames, {"fps": 30.0, "frames_indices": [0, 15]})  numbers in a source of that rate, as transformers has
    (frames, {"times_s": [0.0, 0.5]})                   presentation times
    "clip.mp4", "https://…"                             decoded with transformers' own loader (PyAV), at a constant rate

Frames are (T, H, W, 3) or (T, 3, H, W) uint8 of numpy or torch, or a list of PIL images or of such arrays.

Legend: T frames · H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation, VideoReformatter
from transformers.video_utils import load_video

HOW = "give (frames, {'times_s': [0.0, 0.5]}) or (frames, {'fps': 2.0}); frames are uint8 of shape (T, H, W, 3)"


@dataclass(frozen=True, slots=True)
class Source:
    """A video file as its container describes it."""

    duration_s: float
    native_fps: float
    height: int
    width: int


def videos_in(given: object) -> Iterator[object]:
    """The single videos of what may be one, a list of them, or a list of lists."""
    if given is None:
        return
    if isinstance(given, list) and not _is_frames(given):
        for one in given:
            yield from videos_in(one)
    else:
        yield given


def metadata_in(given: object) -> Iterator[object]:
    """Likewise, of their metadata."""
    if isinstance(given, list):
        for one in given:
            yield from metadata_in(one)
    elif given is not None:
        yield given


def pixels_and_times(video: object, metadata: object = None) -> tuple[np.ndarray, list[float]]:
    """Frames (T, H, W, 3), uint8, and when each was on screen, in seconds.

    Raises:
        ValueError: no frames, or nothing that says when they were on screen; says what to give.
    """
    if isinstance(video, tuple) and len(video) == 2 and isinstance(video[1], Mapping):
        video, metadata = video
    pixels_THWC = _pixels(video)
    return pixels_THWC, _times_s(metadata, len(pixels_THWC))


def resized(pixels_THWC: np.ndarray, size_HW: tuple[int, int]) -> np.ndarray:
    """Frames of another size, by the filter that decoding uses in training (swscale's area)."""
    if pixels_THWC.shape[1:3] == size_HW:
        return pixels_THWC
    height, width = size_HW
    scaler = VideoReformatter()
    return np.stack(
        [
            scaler.reformat(
                av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels_HWC), "rgb24"),
                *(width, height, "rgb24"),
                interpolation=Interpolation.AREA,
            ).to_ndarray()
            for pixels_HWC in pixels_THWC
        ]
    )


def read_file(path: str | Path, times_of: Callable[[Source], Sequence[float]]) -> tuple[np.ndarray, list[float]]:
    """The frames on screen at asked times, and when each came on, of a file or URL with a constant rate.

    Args:
        times_of: the asked times of a source, seconds.
    Raises:
        ValueError: the container does not say its number of frames or its rate.
    """
    wanted: list[int] = []
    rate = 0.0

    def frame_numbers(metadata: Any, **_: object) -> np.ndarray:
        nonlocal wanted, rate
        total, rate = int(metadata.total_num_frames or 0), float(metadata.fps or 0)
        if total < 1 or rate <= 0:
            raise ValueError(f"{path}: its container says neither frames nor rate; decode it yourself and {HOW}")
        source = Source(total / rate, rate, int(metadata.height or 0), int(metadata.width or 0))
        wanted = [min(total - 1, math.floor(time_s * rate + 1e-6)) for time_s in times_of(source)]
        return np.unique(wanted)

    pixels_THWC, _ = load_video(str(path), backend="pyav", sample_indices_fn=frame_numbers)
    if len(pixels_THWC) < len(set(wanted)):
        raise ValueError(f"{path}: ends before the frames that its container promises; decode it yourself and {HOW}")
    return np.asarray(pixels_THWC)[np.searchsorted(np.unique(wanted), wanted)], [number / rate for number in wanted]


def _is_frames(given: list) -> bool:
    """Whether a list is one video's frames, and not several videos: pictures have two or three dimensions."""
    return bool(given) and all(hasattr(one, "convert") or getattr(one, "ndim", 0) == 3 for one in given)


def _pixels(frames: Any) -> np.ndarray:
    if isinstance(frames, torch.Tensor):
        frames = frames.cpu().numpy()
    elif isinstance(frames, Sequence) and not isinstance(frames, str) and len(frames):
        pictures = [frame.convert("RGB") if hasattr(frame, "convert") else frame for frame in frames]
        frames = np.stack([np.asarray(picture) for picture in pictures])
    if not isinstance(frames, np.ndarray) or frames.ndim != 4 or frames.dtype != np.uint8 or 0 in frames.shape:
        told = f"{frames.dtype} {frames.shape}" if isinstance(frames, np.ndarray) else type(frames).__name__
        raise ValueError(f"a video of {told} cannot be read: {HOW}")
    if frames.shape[3] != 3 and frames.shape[1] == 3:
        frames = frames.transpose(0, 2, 3, 1)
    if frames.shape[3] != 3:
        raise ValueError(f"frames of shape {frames.shape} are no RGB pictures: {HOW}")
    return frames


def _times_s(metadata: Any, num_frames: int) -> list[float]:
    if not isinstance(metadata, Mapping):
        raise ValueError(f"a video without times, and the policy reads and answers in seconds: {HOW}")
    given = {name: metadata[name] for name in metadata}
    times_s_T, rate, numbers = given.get("times_s"), given.get("fps"), given.get("frames_indices")
    if times_s_T is None:
        if not isinstance(rate, int | float) or not (math.isfinite(rate) and rate > 0):
            raise ValueError(f"no times follow from {given!r:.200}: {HOW}")
        times_s_T = [int(number) / rate for number in (range(num_frames) if numbers is None else numbers)]
    times_s_T = [float(time_s) for time_s in times_s_T]
    in_order = all(map(math.isfinite, times_s_T)) and times_s_T == sorted(times_s_T)
    if len(times_s_T) != num_frames or not in_order:
        raise ValueError(f"{num_frames} frames need as many times, in order, got {times_s_T!r:.200}: {HOW}")
    return times_s_T
