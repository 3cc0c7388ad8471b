"""Decoded clips kept, so that a group's windows are served from the pass that made its coarse frames.

Coarse frames touch every group of pictures: nearly everything is decoded anyway. What is kept of that pass, the first
that fits its budget:

| kept | where | serves |
|---|---|---|
| every picture as it leaves the decoder (1.5 bytes a pixel of 8-bit video, no copy) | memory | every size |
| every frame as RGB of the size that is asked for, or that looks will ask for | memory | that size |
| the same | a temporary file | that size |
| the frames asked for, as RGB of their size | memory | those windows again |

What comes out never depends on what is kept: a kept frame is the picture, or the pixels, that decoding gives.

Legend: N displayable frames of a clip · T frames asked for · H W pixels · C colours (RGB).
"""

from __future__ import annotations

import logging
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from envs.video.decoding_cost import PassTime, packets_to_decode
from envs.video.frames import Scaler, decode, in_order_asked
from envs.video.index import VideoIndex
from envs.video.pixel_store import DiskStore, KeptFrame, MemoryStore, free_disk_bytes

log = logging.getLogger(__name__)

Size = tuple[int, int]  # HW, in pixels
WHOLE_CLIP_SHARE = 0.5  # a request that spans more of the clip than this is a coarse pass
WORTH_SHARE = 0.25  # of a clip's packets: a coarse pass that decodes as much may as well decode and keep all of it


@dataclass(slots=True, eq=False)
class StoredClip:
    """Frames of a clip, as decoded (`size` None) or as RGB of one size."""

    size: Size | None
    store: MemoryStore | DiskStore
    is_filled: bool = False  # there is room for all frames: whatever is decoded is kept

    @property
    def is_on_disk(self) -> bool:
        """Which budget it counts against."""
        return isinstance(self.store, DiskStore)


@dataclass(slots=True)
class FrameCache:
    """Least recently used clips are dropped beyond the budgets. Safe to use from threads."""

    budget_bytes: int  # of memory; 0: nothing is kept, on disk neither
    disk_budget_bytes: int = 0
    hits: int = 0  # requests served without decoding
    misses: int = 0
    _clips: OrderedDict[tuple, StoredClip] = field(default_factory=OrderedDict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def held_bytes(self) -> int:
        """Of all clips in memory."""
        return self._held(on_disk=False)

    @property
    def held_disk_bytes(self) -> int:
        """Of all clips in temporary files."""
        return self._held(on_disk=True)

    def find(self, index: VideoIndex, size: Size | None) -> StoredClip | None:
        """What is kept of a clip in this form."""
        with self._lock:
            key = (index.file_key, size)
            if key in self._clips:
                self._clips.move_to_end(key)
            return self._clips.get(key)

    def open(self, index: VideoIndex, size: Size | None, num_bytes: int) -> StoredClip | None:
        """Where all frames of a clip can be kept in this form: the least recently used clips make room for them.

        Args:
            num_bytes: of all frames.
        Returns:
            None if that is beyond the budgets.
        """
        with self._lock:
            clip = self.find(index, size) or self._new(size, num_bytes)
            if clip is None:
                return None
            clip.is_filled = True
            self._clips[index.file_key, size] = clip
            self._clips.move_to_end((index.file_key, size))
            self._drop_beyond(self._budget(clip) - num_bytes, clip.is_on_disk, spared=clip)
            return clip

    def is_filled(self, index: VideoIndex) -> bool:
        """Whether all frames of a clip are kept, or being kept, in some form: a group is looking at it."""
        with self._lock:
            return any(clip.is_filled for (file_key, _), clip in self._clips.items() if file_key == index.file_key)

    def keep(self, index: VideoIndex, clip: StoredClip, number: int, frame: KeptFrame) -> bool:
        """Add a frame, dropping the least recently used clips beyond the budget.

        Returns:
            Whether the clip is still kept: it is dropped, too, where nothing else helps.
        """
        try:
            clip.store.put(number, frame)
        except OSError as error:
            where = f"its frames cannot be kept in {tempfile.gettempdir()} ({error.strerror})"
            log.warning("%s: %s; set TMPDIR, or video.frame_cache_disk_bytes=0", index.path, where)
            self.disk_budget_bytes = 0
        with self._lock:
            self._drop_beyond(self._budget(clip), clip.is_on_disk)
            return self._clips.get((index.file_key, clip.size)) is clip

    def keep_asked(self, index: VideoIndex, size: Size, frames: dict[int, KeptFrame]) -> None:
        """Add frames that were asked for, of a clip that is not kept whole in this size: in memory, where other clips
        leave room for them or can be dropped, but never at the cost of what this clip is kept in."""
        with self._lock:
            of_clip = [clip for (file_key, _), clip in self._clips.items() if file_key == index.file_key]
            taken = sum(clip.store.num_bytes for clip in of_clip if not clip.is_on_disk)
            if taken + sum(frame.num_bytes for frame in frames.values()) > self.budget_bytes:
                return
            clip = self._clips.setdefault((index.file_key, size), StoredClip(size, MemoryStore()))
            for kept in of_clip:
                self._clips.move_to_end((index.file_key, kept.size))
        for number, frame in frames.items():
            self.keep(index, clip, number, frame)

    def drop(self, index: VideoIndex, clip: StoredClip) -> None:
        """Forget a clip, the next request decodes it again."""
        with self._lock:
            if self._clips.get((index.file_key, clip.size)) is clip:
                del self._clips[index.file_key, clip.size]

    def count(self, *, hit: bool) -> None:
        """One request more, served without decoding or not."""
        with self._lock:
            self.hits, self.misses = self.hits + hit, self.misses + (not hit)

    def _budget(self, clip: StoredClip) -> int:
        return self.disk_budget_bytes if clip.is_on_disk else self.budget_bytes

    def _new(self, size: Size | None, num_bytes: int) -> StoredClip | None:
        if num_bytes <= self.budget_bytes:
            return StoredClip(size, MemoryStore())
        if not self.budget_bytes or size is None or num_bytes > self._most_on_disk():
            return None
        try:
            return StoredClip(size, DiskStore(size))
        except OSError:  # nowhere to write: as without a disk
            return None

    def _most_on_disk(self) -> int:
        return min(self.disk_budget_bytes, free_disk_bytes() + self.held_disk_bytes)

    def _held(self, *, on_disk: bool) -> int:
        return sum(clip.store.num_bytes for clip in self._clips.values() if clip.is_on_disk == on_disk)

    def _drop_beyond(self, num_bytes: int, on_disk: bool, spared: StoredClip | None = None) -> None:
        excess = self._held(on_disk=on_disk) - num_bytes
        for key, clip in list(self._clips.items()) if excess > 0 else ():
            if clip.is_on_disk == on_disk and clip is not spared and excess > 0:
                excess -= clip.store.num_bytes
                del self._clips[key]  # whoever reads from it now keeps it alive until then


def read_frames_through(
    cache: FrameCache,
    index: VideoIndex,
    times_s: Sequence[float],
    size: Size,
    later_size: Size | None = None,
    cpu_limit_s: float | None = None,
) -> tuple[np.ndarray, tuple[float, ...], int]:
    """As frames.read_frames and with equal results, from the cache where it can, filling it on a coarse pass.

    Args:
        later_size: that later requests for this clip will be of; None: the same; (0, 0): there will be none.
        cpu_limit_s: of this request; what would not end in time is not kept.
    """
    wanted, places_T = np.unique(index.frames_on_screen(times_s), return_inverse=True)
    numbers = wanted.tolist()
    frames = _kept(cache, index, numbers, size)
    missing = [number for number in numbers if number not in frames]
    cache.count(hit=not missing)
    if missing:
        frames |= _decoded(cache, index, missing, _Request(times_s, size, later_size or size, cpu_limit_s))
    in_order = [frames[number] for number in numbers]
    shown, pixels = [frame.shown for frame in in_order], [frame.picture for frame in in_order]
    return in_order_asked(index, places_T, shown, pixels, [frame.is_damaged for frame in in_order])


@dataclass(frozen=True, slots=True)
class _Request:
    times_s: Sequence[float]
    size: Size
    later_size: Size
    cpu_limit_s: float | None

    def is_coarse_pass(self, index: VideoIndex) -> bool:
        span_s = max(self.times_s) - min(self.times_s)
        return len(self.times_s) > 1 and span_s >= WHOLE_CLIP_SHARE * index.duration_s


def _kept(cache: FrameCache, index: VideoIndex, numbers: Iterable[int], size: Size) -> dict[int, KeptFrame]:
    """Of these frames, those that need no decoding."""
    found: dict[int, KeptFrame] = {}
    for form in (None, size):
        clip = cache.find(index, form)
        if clip is None:
            continue
        scaler = Scaler(index.orientation, size) if form is None else None
        try:
            for number in numbers:
                if number not in found and number in clip.store:
                    kept = clip.store.get(number)
                    found[number] = KeptFrame(kept.shown, scaler(kept.picture), kept.is_damaged) if scaler else kept
        except OSError as error:
            log.warning("%s: its frames cannot be read back: %s; it is decoded again", index.path, error)
            cache.drop(index, clip)
    return found


def _decoded(cache: FrameCache, index: VideoIndex, missing: list[int], request: _Request) -> dict[int, KeptFrame]:
    """The frames that are missing, and in the cache as many others of the clip as it is worth to keep."""
    clip, numbers = _plan(cache, index, missing, request)
    asked, rest = _decode_and_keep(cache, index, missing, numbers, clip, request)
    if rest:  # keeping more would have taken too long
        asked |= _decode_and_keep(cache, index, rest, rest, None, request)[0]
    if clip is None or clip.size not in (None, request.size):
        cache.keep_asked(index, request.size, asked)
    return asked


def _plan(
    cache: FrameCache, index: VideoIndex, missing: list[int], request: _Request
) -> tuple[StoredClip | None, Sequence[int]]:
    """Where frames that nobody asked for are kept, and which frames are decoded; None and those missing: nowhere."""
    for form in (None, request.size):
        clip = cache.find(index, form)
        if clip is not None and clip.is_filled:  # time did not allow to keep all of it: now what the window passes
            return clip, range(_first_decoded(index, missing[0]), missing[-1] + 1)
    is_worth_it = packets_to_decode(index, missing) >= WORTH_SHARE * len(index.start_P)
    if not (cache.is_filled(index) or (all(request.later_size) and is_worth_it and request.is_coarse_pass(index))):
        return None, missing
    clip = None
    if index.num_frames * index.frame_bytes <= cache.budget_bytes:
        clip = cache.open(index, None, index.num_frames * index.frame_bytes)
    if clip is None:
        height, width = request.later_size
        clip = cache.open(index, request.later_size, index.num_frames * height * width * 3)
    return clip, missing if clip is None else range(index.num_frames)


def _first_decoded(index: VideoIndex, number: int) -> int:
    """The first frame of those that decoding passes on its way to this one."""
    start = index.start_P[index.packet_N[number]]
    return min(number, int(np.searchsorted(index.start_P[index.packet_N[: number + 1]], start)))


def _decode_and_keep(
    cache: FrameCache,
    index: VideoIndex,
    missing: list[int],
    numbers: Sequence[int],
    clip: StoredClip | None,
    request: _Request,
) -> tuple[dict[int, KeptFrame], list[int]]:
    """Decode `numbers` and keep them in `clip`.

    Returns:
        The frames of `missing`, and those of them that are still to be decoded: keeping others took too long.
    """
    asked: dict[int, KeptFrame] = {}
    scaler = Scaler(index.orientation, request.size)
    kept_scaler = scaler if clip is None or clip.size in (None, request.size) else Scaler(index.orientation, clip.size)
    wanted, time_left = set(missing), PassTime(index, missing, request.cpu_limit_s)
    for number, (shown, picture, is_damaged) in zip(numbers, decode(index, numbers), strict=True):
        pixels = scaler(picture) if number in wanted else None
        if pixels is not None:
            asked[number] = KeptFrame(shown, pixels, is_damaged)
        if clip is not None and number not in clip.store:
            form = picture
            if clip.size is not None:
                form = pixels if pixels is not None and kept_scaler is scaler else kept_scaler(picture)
            if not cache.keep(index, clip, number, KeptFrame(shown, form, is_damaged)):
                clip = None  # pictures may grow on the way, a disk may be full
        if len(numbers) > len(missing) and time_left.is_short(number, keeps_nothing=clip is None):
            return asked, [number for number in missing if number not in asked]
    return asked, []
