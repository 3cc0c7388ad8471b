"""Decoded clips kept in memory, so that a group's windows are served from the pass that made its coarse frames.

Coarse frames touch every group of pictures: nearly everything is decoded anyway. Kept as they leave the decoder (1.5
bytes a pixel, no copy) or, where that is too much and the size asked for is smaller, as RGB of that size.

Legend: N displayable frames of a clip · T frames asked for · H W pixels · C colours (RGB).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import av
import numpy as np

from envs.video.frames import Scaler, decode, in_order_asked, read_frames
from envs.video.index import VideoIndex
from envs.video.packets import picture_bytes

WHOLE_CLIP_SHARE = 0.5  # a request spanning more of the clip than this is a coarse pass: decode and keep everything


@dataclass(frozen=True, slots=True, eq=False)
class StoredClip:
    """Every frame of a clip: pictures as decoded, or RGB pixels of one size."""

    shown_N: tuple[int, ...]  # number of the frame that is shown for frame n: its own unless damaged
    pictures_N: tuple[av.VideoFrame | np.ndarray, ...]
    damaged_N: tuple[bool, ...]
    size_HW: tuple[int, int] | None  # None: as decoded, serves every size
    num_bytes: int


@dataclass(slots=True)
class FrameCache:
    """Least recently used clips are dropped beyond `budget_bytes`. 0 keeps nothing. Safe to use from threads."""

    budget_bytes: int
    hits: int = 0  # requests served from memory
    misses: int = 0
    _clips: OrderedDict[tuple, StoredClip] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def held_bytes(self) -> int:
        """Of all clips."""
        return sum(clip.num_bytes for clip in self._clips.values())

    def find(self, index: VideoIndex, size_HW: tuple[int, int]) -> StoredClip | None:
        """The clip, if it can be shown at this size."""
        with self._lock:
            for key in ((index.file_key, None), (index.file_key, size_HW)):
                if key in self._clips:
                    self._clips.move_to_end(key)
                    self.hits += 1
                    return self._clips[key]
            self.misses += 1
            return None

    def keep(self, index: VideoIndex, clip: StoredClip) -> None:
        """Add a clip and drop the least recently used ones beyond the budget."""
        with self._lock:
            self._clips[index.file_key, clip.size_HW] = clip
            self._drop_beyond(self.budget_bytes)

    def make_room(self, num_bytes: int) -> None:
        """Drop the least recently used clips until as much is free: what is to come must not lie beside them."""
        with self._lock:
            self._drop_beyond(self.budget_bytes - num_bytes)

    def _drop_beyond(self, num_bytes: int) -> None:
        while self._clips and self.held_bytes > num_bytes:
            self._clips.popitem(last=False)


def read_frames_through(
    cache: FrameCache, index: VideoIndex, times_s: Sequence[float], size_HW: tuple[int, int]
) -> tuple[np.ndarray, tuple[float, ...], int]:
    """As frames.read_frames and with equal results, from the cache where it can, filling it on a coarse pass."""
    asked_T = index.frames_on_screen(times_s)
    clip = cache.find(index, size_HW)
    if clip is None and _is_coarse_pass(index, times_s):
        clip = _decode_whole(index, size_HW, cache)
        if clip is not None:
            cache.keep(index, clip)
    if clip is None:
        return read_frames(index, times_s, size_HW)
    return _serve(clip, index, asked_T, size_HW)


def _is_coarse_pass(index: VideoIndex, times_s: Sequence[float]) -> bool:
    return len(times_s) > 1 and max(times_s) - min(times_s) >= WHOLE_CLIP_SHARE * index.duration_s


def _decode_whole(index: VideoIndex, size_HW: tuple[int, int], cache: FrameCache) -> StoredClip | None:
    """The whole clip in the form that fits the budget, or None if neither does."""
    as_decoded = index.num_frames * index.frame_bytes
    as_rgb = index.num_frames * size_HW[0] * size_HW[1] * 3
    if min(as_decoded, as_rgb) > cache.budget_bytes:
        return None
    scaler = None if as_decoded <= cache.budget_bytes else Scaler(index.rotation, size_HW)
    cache.make_room(as_rgb if scaler else as_decoded)
    shown, pictures, damaged, num_bytes = [], [], [], 0
    for number, picture, is_damaged in decode(index, range(index.num_frames)):
        shown.append(number)
        pictures.append(scaler(picture) if scaler else picture)
        damaged.append(is_damaged)
        num_bytes += pictures[-1].nbytes if scaler else picture_bytes(picture)
        if num_bytes > cache.budget_bytes:  # pictures may grow on the way
            return None
    return StoredClip(tuple(shown), tuple(pictures), tuple(damaged), size_HW if scaler else None, num_bytes)


def _serve(
    clip: StoredClip, index: VideoIndex, asked_T: np.ndarray, size_HW: tuple[int, int]
) -> tuple[np.ndarray, tuple[float, ...], int]:
    numbers, places_T = np.unique(asked_T, return_inverse=True)
    pixels = [clip.pictures_N[number] for number in numbers]
    if clip.size_HW is None:
        scaler = Scaler(index.rotation, size_HW)
        pixels = [scaler(picture) for picture in pixels]
    shown, damaged = [clip.shown_N[number] for number in numbers], [clip.damaged_N[number] for number in numbers]
    return in_order_asked(index, places_T, shown, pixels, damaged)
