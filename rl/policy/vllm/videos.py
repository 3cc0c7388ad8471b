"""Videos as users of vLLM send them, as frames of ours: frames with their times, or what a loader made of a file.

Legend: T frames · H W pixels · C channels (RGB).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vllm.multimodal.media import MediaWithBytes

from rl.policy.given_frames import pixels_and_times, resized
from rl.policy.processor import Processor
from rl.trajectory import Frames

OPEN = "open"  # key of a loader's metadata: a function that decodes when it knows for which policy
Opener = Callable[[Processor], Frames]


def frames_of(sent: object, processor: Processor, max_pixels: int) -> Frames:
    """Frames of a video as a request brings it, resized to what the policy reads where they are of another size.

    Args:
        sent: (frames, metadata), or what one of vLLM's loaders made of a file.
        max_pixels: of a frame that has to be resized.
    Raises:
        UnusableVideoError: no frames, or nothing that says when they were on screen.
    """
    media = sent.media if isinstance(sent, MediaWithBytes) else sent
    frames, metadata = media if isinstance(media, tuple) and len(media) == 2 else (media, None)
    if isinstance(frames, MediaWithBytes):
        frames = frames.media
    if isinstance(metadata, Mapping) and OPEN in metadata:
        return metadata[OPEN](processor)
    pixels_THWC, times_s_T = pixels_and_times(frames, metadata)
    size = _size(*pixels_THWC.shape[1:3], processor, max_pixels)
    return processor.make_frames(resized(pixels_THWC, size), times_s_T)


def _size(height: int, width: int, processor: Processor, max_pixels: int) -> tuple[int, int]:
    """Frames that somebody has cut to the policy's size stay as they are."""
    unit = processor.geometry.unit
    if height % unit == width % unit == 0 and height * width <= max_pixels:
        return height, width
    return processor.fit(height, width, max_pixels)
