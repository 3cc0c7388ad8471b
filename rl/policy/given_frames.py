"""Frames as others give them, with what says when each was on screen: to vLLM in requests, to an exported processor.

    {"times_s": [0.0, 0.5]}                      presentation times, where a source has no steady rate
    {"fps": 30.0, "frames_indices": [0, 15]}     numbers in the source, and its rate, as video loaders say it
    {"fps": 2.0}                                 frame i was on screen at i / fps

Legend: T frames · H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation, VideoReformatter

HOW = (
    "give (frames, metadata): frames (T, H, W, 3) uint8 RGB, and when each was on screen, as {'times_s': [0.0, 0.5]}, "
    "as {'fps': 2.0}, or with their numbers in a source of that rate, {'frames_indices': [0, 15], 'fps': 30.0}"
)
KEYS = ("fps", "frames_indices", "total_num_frames")


class UnusableVideoError(ValueError):
    """A video that somebody gives cannot be used; the message says what to give."""


def is_frames(given: object) -> bool:
    """Whether a list is one video's frames, and not several videos."""
    return isinstance(given, list) and bool(given) and all(map(_is_picture, given))


def pixels_and_times(frames: object, metadata: object) -> tuple[np.ndarray, list[float]]:
    """Pixels (T, H, W, 3), uint8, and when each frame was on screen, in seconds.

    Args:
        frames: an array or tensor, also (T, 3, H, W), or a list of pictures.
    Raises:
        UnusableVideoError: no frames, or nothing that says when they were on screen.
    """
    if not isinstance(metadata, Mapping):
        raise UnusableVideoError(f"a video without times, and a scene's time is what the policy answers with; {HOW}")
    pixels_THWC = _pixels(frames)
    return pixels_THWC, _times_s(metadata, len(pixels_THWC))


def resized(pixels_THWC: np.ndarray, size_HW: tuple[int, int]) -> np.ndarray:
    """Frames of another size, by the filter that decoding uses (swscale's area)."""
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


def _pixels(frames: Any) -> np.ndarray:
    if isinstance(frames, torch.Tensor):
        frames = frames.cpu().numpy()
    elif is_frames(frames):
        pictures = [frame.convert("RGB") if hasattr(frame, "convert") else frame for frame in frames]
        frames = np.stack([np.asarray(picture) for picture in pictures])
    if not isinstance(frames, np.ndarray) or frames.ndim != 4 or frames.dtype != np.uint8:
        told = f"{frames.dtype} {frames.shape}" if isinstance(frames, np.ndarray) else type(frames).__name__
        raise UnusableVideoError(f"frames must be uint8 of shape (T, H, W, 3), got {told}; {HOW}")
    if frames.shape[3] != 3 and frames.shape[1] == 3:
        frames = frames.transpose(0, 2, 3, 1)
    if frames.shape[3] != 3 or 0 in frames.shape:
        raise UnusableVideoError(f"frames must be uint8 of shape (T, H, W, 3), got {frames.shape}; {HOW}")
    return frames


def _times_s(metadata: Mapping[str, Any], num_frames: int) -> list[float]:
    given = {name: metadata[name] for name in metadata}  # a mapping's own `get` need not know that a key is absent
    if given.get("times_s") is not None:
        return _checked(_numbers(given["times_s"], "times_s", float), "times_s", num_frames)
    rate, numbers = given.get("fps"), given.get("frames_indices")
    if numbers is None and given.get("total_num_frames") in (None, num_frames):
        numbers = range(num_frames)  # the whole source
    if numbers is None or not isinstance(rate, int | float) or not (math.isfinite(rate) and rate > 0):
        told = {name: given[name] for name in KEYS if name in given}
        raise UnusableVideoError(f"no times follow from {told!r:.200} for {num_frames} frames; {HOW}")
    numbers = _numbers(numbers, "frames_indices", int)
    return _checked([number / float(rate) for number in numbers], "frames_indices", num_frames)


def _numbers(given: Any, key: str, kind: type[float] | type[int]) -> list[float]:
    """What should be numbers in a row, as such."""
    try:
        if np.ndim(given) == 1:
            return [kind(number) for number in given]
    except (TypeError, ValueError, OverflowError):  # rows of unequal length, words, an infinite index
        pass
    raise UnusableVideoError(f"{key} must be numbers in one dimension, one per frame, got {given!r:.200}; {HOW}")


def _is_picture(given: object) -> bool:
    """A PIL image, or an array of three dimensions."""
    return hasattr(given, "convert") or (hasattr(given, "shape") and len(given.shape) == 3)


def _checked(times_s_T: Sequence[float], key: str, num_frames: int) -> list[float]:
    times_s_T = list(times_s_T)
    in_order = all(map(math.isfinite, times_s_T)) and times_s_T == sorted(times_s_T)
    if len(times_s_T) != num_frames or not in_order:
        raise UnusableVideoError(f"{num_frames} frames need as many {key}, in order, got {times_s_T!r:.200}; {HOW}")
    return times_s_T
