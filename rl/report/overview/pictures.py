"""Pictures of one prediction: the whole clip in a few, and what each granted window shows."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from rl.report.thumbnails import LADDER, MOST_PROBLEM, FramesUnavailableError, encode

WHOLE, WINDOW = 10, 8  # pictures, at most
MOST_WINDOWS = 6  # calls of a prediction whose pictures are shown


class PictureSource(Protocol):
    """Where pixels come from, at any time of a clip."""

    def duration_s(self, video: str) -> float:
        """Length of a clip. Raises FramesUnavailableError."""

    def shown_at(self, video: str, times_s: Sequence[float], longest_side: int) -> list[np.ndarray]:
        """The frames on screen then (HWC, uint8), never enlarged. Raises FramesUnavailableError."""


def pictures(source: PictureSource, video: str, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{duration_s, problem, strips: [{start_s, end_s, frames: [[seconds, base64 of a WebP], …]}]}; the clip first.

    The times are chosen evenly; they are not those of the frames that the policy was given.
    """
    try:
        duration_s = source.duration_s(video)
        windows = [(0.0, duration_s, WHOLE)]
        windows += [(*call["granted"], min(WINDOW, max(1, call["frames"]))) for call in calls if "granted" in call][
            :MOST_WINDOWS
        ]
        return {
            "duration_s": duration_s,
            "problem": "",
            "strips": [_strip(source, video, duration_s, *window) for window in windows],
        }
    except FramesUnavailableError as error:
        return {"duration_s": None, "problem": str(error)[:MOST_PROBLEM], "strips": []}


def _strip(
    source: PictureSource, video: str, duration_s: float, start_s: float, end_s: float, count: int
) -> dict[str, Any]:
    start_s, end_s = max(0.0, start_s), min(duration_s, end_s)
    times_s = [start_s + (place + 0.5) * max(0.0, end_s - start_s) / count for place in range(count)]
    frames = source.shown_at(video, times_s, LADDER[0].longest_side)
    images = (base64.b64encode(encode(frame_HWC, LADDER[0])).decode("ascii") for frame_HWC in frames)
    shown = [[round(time_s, 3), image] for time_s, image in zip(times_s, images, strict=True)]
    return {"start_s": start_s, "end_s": end_s, "frames": shown}
