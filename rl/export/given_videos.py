"""Videos as a stranger gives them to the exported processor: frames with their times (rl.policy.given_frames), or a
file or URL, which transformers' own loader decodes (PyAV) at a constant rate.

Legend: T frames · H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers.video_utils import load_video

from rl.policy.given_frames import HOW, UnusableVideoError, is_frames


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
    if isinstance(given, list) and not is_frames(given):
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


def read_file(path: str | Path, asked: Callable[[Source], Sequence[float]]) -> tuple[np.ndarray, list[float]]:
    """The frames on screen at asked times, and when each came on, of a file or URL with a constant rate.

    Args:
        asked: the times of a source, seconds.
    Raises:
        UnusableVideoError: the container does not say its number of frames or its rate.
    """
    wanted: list[int] = []
    rate = 0.0

    def frame_numbers(metadata: Any, **_: object) -> np.ndarray:
        nonlocal wanted, rate
        total, rate = int(metadata.total_num_frames or 0), float(metadata.fps or 0)
        if total < 1 or rate <= 0:
            raise UnusableVideoError(f"{path}: its container says neither frames nor rate; decode it, and {HOW}")
        source = Source(total / rate, rate, int(metadata.height or 0), int(metadata.width or 0))
        wanted = [min(total - 1, math.floor(time_s * rate + 1e-6)) for time_s in asked(source)]
        return np.unique(wanted)

    pixels_THWC, _ = load_video(str(path), backend="pyav", sample_indices_fn=frame_numbers)
    if len(pixels_THWC) < len(set(wanted)):
        raise UnusableVideoError(f"{path}: ends before the frames that its container promises; decode it, and {HOW}")
    return np.asarray(pixels_THWC)[np.searchsorted(np.unique(wanted), wanted)], [number / rate for number in wanted]
