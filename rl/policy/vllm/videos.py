"""Videos as users of vLLM send them: frames with what says when each was on screen, as frames of ours.

    ({"frames_indices": [0, 15, 30], "fps": 30.0}, …)   what vLLM's own loaders say: number of each frame, source's rate
    ({"times_s": [0.0, 0.5, 1.0]}, …)                   presentation times, where a source has no steady rate

Legend: T frames · H W pixels · C channels (RGB).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image
from vllm.multimodal.media import MediaWithBytes

from rl.policy.processor import Processor
from rl.trajectory import Frames

OPEN = "open"  # key of a loader's metadata: a function that decodes when it knows for which policy
HOW = (
    "give (frames, metadata): frames (T, H, W, 3) uint8 RGB, and when each was on screen, as {'times_s': [0.0, 0.5]} "
    "or as vLLM's loaders say it, {'frames_indices': [0, 15], 'fps': 30.0}, fps being the source's"
)

Opener = Callable[[Processor], Frames]


class UnusableVideoError(ValueError):
    """A video that a request brings cannot be used; the message says what to send."""


def frames_of(sent: object, processor: Processor, max_pixels: int) -> Frames:
    """Frames of a video as a request brings it, resized to what the policy reads where they are of another size.

    Args:
        sent: (frames, metadata), or what one of vLLM's loaders made of a file.
        max_pixels: of a frame that has to be resized.
    Raises:
        UnusableVideoError: no frames, or nothing that says when they were on screen.
    """
    media = sent.media if isinstance(sent, MediaWithBytes) else sent
    if not (isinstance(media, tuple) and len(media) == 2 and isinstance(media[1], Mapping)):
        raise UnusableVideoError(f"a video without times, and a scene's time is what the policy answers with; {HOW}")
    frames, metadata = media
    if isinstance(frames, MediaWithBytes):
        frames = frames.media
    if OPEN in metadata:
        return metadata[OPEN](processor)
    pixels_THWC = _pixels(frames)
    times_s_T = _times_s(metadata, len(pixels_THWC))
    size = _size(*pixels_THWC.shape[1:3], processor, max_pixels)
    return processor.make_frames(resized(pixels_THWC, size), times_s_T)


def is_frames(data: Sequence[object]) -> bool:
    """Whether a list is one video's frames, and not several videos."""
    pictures = (np.ndarray, torch.Tensor, Image.Image)
    return bool(data) and all(isinstance(frame, pictures) and getattr(frame, "ndim", 3) == 3 for frame in data)


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


def _size(height: int, width: int, processor: Processor, max_pixels: int) -> tuple[int, int]:
    """Frames that somebody has cut to the policy's size stay as they are."""
    unit = processor.geometry.unit
    if height % unit == width % unit == 0 and height * width <= max_pixels:
        return height, width
    return processor.fit(height, width, max_pixels)


def _pixels(frames: Any) -> np.ndarray:
    """(T, H, W, 3), uint8.

    Raises:
        UnusableVideoError: something else.
    """
    if isinstance(frames, torch.Tensor):
        frames = frames.cpu().numpy()
    elif isinstance(frames, Sequence):
        frames = np.stack([np.asarray(frame) for frame in frames]) if frames else np.empty(0)
    if not isinstance(frames, np.ndarray) or frames.ndim != 4 or frames.dtype != np.uint8:
        told = f"{frames.dtype} {frames.shape}" if isinstance(frames, np.ndarray) else type(frames).__name__
        raise UnusableVideoError(f"frames must be uint8 of shape (T, H, W, 3), got {told}; {HOW}")
    if frames.shape[3] != 3 and frames.shape[1] == 3:
        frames = frames.transpose(0, 2, 3, 1)
    if frames.shape[3] != 3 or 0 in frames.shape:
        raise UnusableVideoError(f"frames must be uint8 of shape (T, H, W, 3), got {frames.shape}; {HOW}")
    return frames


def _times_s(metadata: Mapping[str, Any], num_frames: int) -> list[float]:
    """When each frame was on screen.

    Raises:
        UnusableVideoError: nothing says so, or not for every frame.
    """
    if metadata.get("times_s") is not None:
        return _checked([float(time_s) for time_s in metadata["times_s"]], "times_s", num_frames)
    rate, numbers = metadata.get("fps"), metadata.get("frames_indices")
    if numbers is None and metadata.get("total_num_frames") == num_frames:
        numbers = range(num_frames)  # the whole source
    if numbers is None or not isinstance(rate, int | float) or not (math.isfinite(rate) and rate > 0):
        given = {name: metadata[name] for name in ("fps", "frames_indices", "total_num_frames") if name in metadata}
        raise UnusableVideoError(f"no times follow from {given!r:.200} for {num_frames} frames; {HOW}")
    return _checked([int(number) / float(rate) for number in numbers], "frames_indices", num_frames)


def _checked(times_s_T: list[float], key: str, num_frames: int) -> list[float]:
    in_order = all(math.isfinite(time_s) for time_s in times_s_T) and times_s_T == sorted(times_s_T)
    if len(times_s_T) != num_frames or not in_order:
        raise UnusableVideoError(f"{num_frames} frames need as many {key}, in order, got {times_s_T!r:.200}; {HOW}")
    return times_s_T
