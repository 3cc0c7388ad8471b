"""Thumbnails within a budget of bytes: which frames, how small, and for which trajectories when not all fit.

Frames are decoded again from the clips: one small WebP per (clip, presentation time), shared by all that saw
it.
The ladder: large, smaller, smallest; then fewer trajectories, spread evenly over the steps.

Legend: N trajectories, the most wanted first · H W pixels · C colours (RGB).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol

import numpy as np
from PIL import Image

from rl.report.steps import FrameNeeds

BASE64 = Fraction(4, 3)
ESCAPED_BYTES = 6  # of one character of text in the page, at most
KEY_BYTES = 16  # of `"123456":"…",` around a thumbnail
SAMPLED_CLIPS, SAMPLED_FRAMES = 6, 6  # looked at to learn what a thumbnail weighs in this run
MOST_PROBLEM = 200  # characters told of why a clip cannot be shown
MARGIN = 0.95  # of the room is planned for; the rest is for what a sample does not know

Key = tuple[str, int]  # clip, presentation time in milliseconds


class FramesUnavailableError(Exception):
    """A clip whose frames cannot be shown; the message says why."""


class FrameSource(Protocol):
    """Where pixels come from."""

    def duration_s(self, video: str) -> float:
        """Length of a clip. Raises FramesUnavailableError."""

    def frames(self, video: str, times_ms: Sequence[int], longest_side: int) -> list[np.ndarray]:
        """The frames presented at these times (HWC, uint8), never enlarged. Raises FramesUnavailableError."""


@dataclass(frozen=True, slots=True)
class Rung:
    """How large and how fine thumbnails are."""

    longest_side: int  # pixels
    quality: int  # of WebP


LADDER = (Rung(128, 65), Rung(96, 55), Rung(72, 45))


@dataclass(frozen=True, slots=True)
class ClipThumbnails:
    """What can be shown of one clip."""

    duration_s: float | None
    images: Mapping[int, str] = field(default_factory=dict)  # milliseconds -> base64 of a WebP
    problem: str = ""  # why there are none


@dataclass(frozen=True, slots=True)
class Thumbnails:
    """All thumbnails of a page, and for how many trajectories there was room."""

    clips: Mapping[str, ClipThumbnails]
    rung: Rung
    shown: int  # trajectories whose frames are all here, or whose clip cannot be read
    wanted: int


def make_thumbnails(
    needs_N: Sequence[FrameNeeds],
    source: FrameSource,
    room_bytes: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Thumbnails:
    """Decode and encode what fits into `room_bytes` of the page.

    Args:
        needs_N: by priority; of a prefix that is cut off, as many as still fit are shown.
        progress: called with (clips done, clips in all).
    """
    sizes = _weigh(needs_N, source)
    rung, chosen = plan(needs_N, sizes, room_bytes)
    times_of: dict[str, set[int]] = {}
    for need in needs_N[:chosen]:
        times_of.setdefault(need.video, set()).update(need.times_ms)
    clips: dict[str, ClipThumbnails] = {}
    for done, (video, times_ms) in enumerate(times_of.items(), start=1):
        clips[video] = clip_thumbnails(video, sorted(times_ms), source, rung)
        progress(done, len(times_of))
    kept, shown = fit(needs_N, clips, room_bytes)
    return Thumbnails(
        {video: _only(clip, kept.get(video, ())) for video, clip in clips.items()}, rung, shown, len(needs_N)
    )


def clip_thumbnails(video: str, times_ms: Sequence[int], source: FrameSource, rung: Rung) -> ClipThumbnails:
    """Thumbnails of one clip, or why there are none."""
    try:
        duration_s = source.duration_s(video)
    except FramesUnavailableError as error:
        return ClipThumbnails(None, problem=str(error)[:MOST_PROBLEM])
    try:
        frames = source.frames(video, times_ms, rung.longest_side)
    except FramesUnavailableError as error:
        return ClipThumbnails(duration_s, problem=str(error)[:MOST_PROBLEM])
    encoded = (base64.b64encode(encode(frame_HWC, rung)).decode("ascii") for frame_HWC in frames)
    return ClipThumbnails(duration_s, dict(zip(times_ms, encoded, strict=True)))


def plan(needs_N: Sequence[FrameNeeds], bytes_of: Mapping[Rung, float], room_bytes: int) -> tuple[Rung, int]:
    """The first rung on which all fit by estimate; on the last, how many of the most wanted do.

    Args:
        bytes_of: mean bytes of an encoded thumbnail per rung.
    Returns:
        The rung, and how many trajectories.
    """
    room = room_bytes * MARGIN
    distinct = len({key for need in needs_N for key in _keys(need)})
    for rung, mean_bytes in bytes_of.items():
        if distinct * _cost(mean_bytes) <= room:
            return rung, len(needs_N)
    rung, mean_bytes = list(bytes_of.items())[-1]
    seen: set[Key] = set()
    for chosen, need in enumerate(needs_N):
        seen.update(_keys(need))
        if len(seen) * _cost(mean_bytes) > room:
            return rung, chosen
    return rung, len(needs_N)


def fit(
    needs_N: Sequence[FrameNeeds], clips: Mapping[str, ClipThumbnails], room_bytes: int
) -> tuple[dict[str, set[int]], int]:
    """What is kept, exactly within the room: trajectory by trajectory, all of its frames or none.

    Returns:
        Times kept per clip, and for how many trajectories.
    """
    kept: dict[str, set[int]] = {}
    used, shown = sum(ESCAPED_BYTES * len(clip.problem) for clip in clips.values()), 0
    for need in needs_N:
        clip = clips.get(need.video)
        if clip is None:
            continue
        if clip.problem:
            shown += 1
            continue
        new = need.times_ms - kept.get(need.video, set())
        if not new <= clip.images.keys():
            continue
        cost = sum(len(clip.images[time]) + KEY_BYTES for time in new)
        if used + cost <= room_bytes:
            used, shown = used + cost, shown + 1
            kept.setdefault(need.video, set()).update(new)
    return kept, shown


def encode(frame_HWC: np.ndarray, rung: Rung) -> bytes:
    """A small WebP, shrunk to the rung's size if larger."""
    image = Image.fromarray(frame_HWC)
    image.thumbnail((rung.longest_side, rung.longest_side), Image.Resampling.BOX)
    written = io.BytesIO()
    image.save(written, "WEBP", quality=rung.quality, method=4)
    return written.getvalue()


def evenly(count: int) -> list[int]:
    """0 … count-1 in an order in which every beginning is spread evenly: by the van der Corput sequence, base 2."""
    bits = max(1, (count - 1).bit_length())
    return sorted(range(count), key=lambda index: int(f"{index:0{bits}b}"[::-1], 2))


def _weigh(needs_N: Sequence[FrameNeeds], source: FrameSource) -> dict[Rung, float]:
    """Mean bytes of a thumbnail on each rung, over a sample of clips."""
    times_of: dict[str, set[int]] = {}
    for need in needs_N:
        times_of.setdefault(need.video, set()).update(need.times_ms)
    videos = [video for video, times in times_of.items() if times]
    frames: list[np.ndarray] = []
    for video in _spread(videos, SAMPLED_CLIPS):
        try:
            frames += source.frames(video, _spread(sorted(times_of[video]), SAMPLED_FRAMES), LADDER[0].longest_side)
        except FramesUnavailableError:
            continue  # it will have no thumbnails; its reason is told where they are made
    return {rung: sum(len(encode(frame, rung)) for frame in frames) / max(len(frames), 1) for rung in LADDER}


def _spread(items: Sequence, count: int) -> list:
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def _keys(need: FrameNeeds) -> Iterable[Key]:
    return ((need.video, time) for time in need.times_ms)


def _cost(encoded_bytes: float) -> float:
    return float(encoded_bytes * BASE64 + KEY_BYTES)


def _only(clip: ClipThumbnails, times_ms: Iterable[int]) -> ClipThumbnails:
    wanted = set(times_ms)
    return ClipThumbnails(
        clip.duration_s, {time: image for time, image in clip.images.items() if time in wanted}, clip.problem
    )
