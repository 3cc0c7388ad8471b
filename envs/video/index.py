"""What a video file holds, learned by reading its packets: when each frame is on screen and where decoding can start.

Legend: P packets in decoding order · N displayable frames in display order.

Times are seconds on the video clock: 0 is the first displayable frame. A frame is on screen at t if it is the last one
whose presentation time is <= t.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import av
import numpy as np

from envs.video.file import (
    CorruptVideoError,
    FileKey,
    FrameRangeError,
    demuxer,
    regular_file,
)
from envs.video.packets import (
    MAX_PACKETS,
    Packet,
    best_stream,
    moving_streams,
    picture_bytes,
    read_packets,
    refuse_huge,
)

BAD_SHARE = 0.1  # of a stream, or of the frames asked for, that may be missing
UNTRUSTED_CLOCKS = ("avi", "mpeg")  # containers that carry no presentation times; what demuxers make up is often wrong
SAME_TIME_S = 1e-6  # two times closer than this are one: slack for floats
USUAL_FPS = 25.0  # where a stream does not say, or says something absurd
MAX_FPS = 10_000.0  # declared
MAX_DURATION_S = 1e6  # eleven days; what claims to be longer has a broken clock
PAST_END_S = 0.011  # asked times are in centiseconds: this far beyond the end is still the last frame


@dataclass(frozen=True, slots=True, eq=False)
class VideoIndex:
    """The clock of a video's best stream."""

    path: str
    file_key: FileKey  # the identity of what was indexed
    container: str  # FFmpeg's name of the format
    stream_index: int
    codec: str
    duration_s: float  # of what is displayable
    native_fps: float  # average
    height: int  # as displayed, after rotation
    width: int
    rotation: int  # degrees counter-clockwise to apply to decoded pictures: 0, 90, 180 or 270
    is_vfr: bool
    num_video_streams: int
    has_discarded: bool  # packets decoded but not displayed (edit lists)
    counts_frames: bool  # presentation times are missing: frames are numbered as they come out of a whole decode
    frame_bytes: int  # of one decoded picture
    pts_P: np.ndarray  # stream time base
    start_P: np.ndarray  # per packet: where decoding must begin to get its frame right (a keyframe's position)
    packet_N: np.ndarray  # position of each displayable frame's packet
    times_s_N: np.ndarray
    position_of_pts: dict[int, int]  # packets
    number_of_pts: dict[int, int]  # frames

    @property
    def num_frames(self) -> int:
        """N."""
        return len(self.times_s_N)

    @property
    def has_open_groups(self) -> bool:
        """Some frame is decoded after a keyframe but displayed before it: it needs the pictures before, too."""
        return bool(np.any(np.diff(self.start_P) < 0))

    def frames_on_screen(self, times_s: Sequence[float]) -> np.ndarray:
        """Number of the frame shown at each time.

        Raises:
            FrameRangeError: a time before 0, after the end, or not a number.
        """
        asked_s = np.asarray(times_s, dtype=np.float64)
        outside = asked_s[~((asked_s >= -SAME_TIME_S) & (asked_s <= self.duration_s + PAST_END_S))]
        if len(outside):
            problem = f"asked for the frame at {outside[0]:.3f} s of a clip of {self.duration_s:.3f} s"
            raise FrameRangeError(self.path, problem, "clamp the window to the clip first")
        return np.maximum(np.searchsorted(self.times_s_N, asked_s + SAME_TIME_S, side="right") - 1, 0)


def index_video(path: str | os.PathLike[str]) -> VideoIndex:
    """Index a file by demuxing it (one picture is decoded, for its true size); cached by path, size and mtime.

    Raises:
        VideoOpenError: no such file, not a regular one, or not a video container.
        NoVideoStreamError: audio only.
        CorruptVideoError: nothing decodable, a clock or pictures beyond all measure, or more than a tenth of the
            declared stream is missing.
        MemoryError: there was too little for it.
    """
    path = os.fspath(path)
    with regular_file(path) as file:
        index = INDICES.find(file.key)
        if index is None:
            with demuxer(file) as container:
                index = _index(path, file.key, container)
            INDICES.keep(index)
    return index


@dataclass(slots=True)
class IndexCache:
    """Indices of the latest files, as many as `max_packets` packets allow (about 200 bytes each). Safe in threads."""

    max_packets: int
    _indices: OrderedDict[FileKey, VideoIndex] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def held_packets(self) -> int:
        """Of all indices."""
        return sum(len(index.pts_P) for index in self._indices.values())

    def find(self, key: FileKey) -> VideoIndex | None:
        """The index of this very file, if it is held."""
        with self._lock:
            if key in self._indices:
                self._indices.move_to_end(key)
            return self._indices.get(key)

    def keep(self, index: VideoIndex) -> None:
        """Add an index and drop the least recently used ones beyond the limit."""
        with self._lock:
            self._indices[index.file_key] = index
            while self.held_packets > self.max_packets:
                self._indices.popitem(last=False)


INDICES = IndexCache(MAX_PACKETS)


def _index(path: str, file_key: FileKey, container: av.container.InputContainer) -> VideoIndex:
    stream = best_stream(container, path)
    if stream.codec_context is None:
        raise CorruptVideoError(path, "is in a codec that nobody knows", "re-encode or replace the file")
    refuse_huge(path, stream.codec_context)
    if not stream.time_base or stream.time_base < 0:
        raise CorruptVideoError(path, "has no clock (its time base is 0)", "re-encode or replace the file")
    stream.codec_context.thread_count = 1
    packets, picture = read_packets(path, container, stream)
    if picture is None or not any(packet.is_key for packet in packets):
        raise CorruptVideoError(path, "no picture can be decoded", "re-encode or replace the file")
    return _build(path, file_key, container, stream, packets, picture)


def _build(path, file_key, container, stream, packets: list[Packet], picture: av.VideoFrame) -> VideoIndex:
    _refuse_broken_clock(path, [packet.pts for packet in packets if packet.pts is not None], stream)
    counts_frames = container.format.name in UNTRUSTED_CLOCKS or any(packet.pts is None for packet in packets)
    pts_P = _even_clock(packets, stream) if counts_frames else np.array([packet.pts for packet in packets], np.int64)
    key_P = np.array([packet.is_key for packet in packets])
    shown_P = ~np.array([packet.is_discarded for packet in packets])
    shown_P[: int(np.argmax(key_P))] = False  # nothing to decode them from
    shown_P &= pts_P >= pts_P[np.argmax(key_P)]
    packet_N = np.flatnonzero(shown_P)
    packet_N = packet_N[np.argsort(pts_P[packet_N], kind="stable")]
    if not len(packet_N):
        raise CorruptVideoError(path, "no frame is displayable", "re-encode or replace the file")
    seconds = float(stream.time_base)
    times_s_N = (pts_P[packet_N] - pts_P[packet_N[0]]) * stream.time_base.numerator / stream.time_base.denominator
    gaps_s = np.diff(times_s_N)
    usual_gap_s = float(np.median(gaps_s)) if len(gaps_s) else 1 / _declared_fps(stream)
    duration_s = float(times_s_N[-1]) + _last_on_screen_s(packets[packet_N[-1]].duration * seconds, usual_gap_s, stream)
    _refuse_truncated(path, stream, float(np.ptp(pts_P)) * seconds + usual_gap_s)
    rotation = round(picture.rotation / 90) % 4 * 90  # other angles: the nearest quarter turn
    height, width = (picture.width, picture.height) if rotation in (90, 270) else (picture.height, picture.width)
    return VideoIndex(
        path=path,
        file_key=file_key,
        container=container.format.name,
        stream_index=stream.index,
        codec=stream.codec_context.name,
        duration_s=duration_s,
        native_fps=len(packet_N) / duration_s,
        height=height,
        width=width,
        rotation=rotation,
        is_vfr=bool(len(gaps_s)) and float(np.abs(gaps_s - usual_gap_s).max()) > max(0.1 * usual_gap_s, 1.01 * seconds),
        num_video_streams=len(moving_streams(container)),
        has_discarded=any(packet.is_discarded for packet in packets),
        counts_frames=counts_frames,
        frame_bytes=picture_bytes(picture),
        pts_P=pts_P,
        start_P=np.zeros(len(packets), dtype=np.int64) if counts_frames else _decoding_starts(pts_P, key_P),
        packet_N=packet_N,
        times_s_N=times_s_N,
        position_of_pts={pts: position for position, pts in reversed(list(enumerate(pts_P.tolist())))},
        number_of_pts={int(pts_P[packet]): number for number, packet in enumerate(packet_N)},
    )


def _even_clock(packets: list[Packet], stream: av.video.stream.VideoStream) -> np.ndarray:
    """Times for frames that have none: one packet after the other, as far apart as decoding times usually are."""
    decoded_at = np.array(sorted(packet.dts for packet in packets if packet.dts is not None), dtype=np.float64)
    gap = float(np.median(np.diff(decoded_at))) if len(decoded_at) > 1 else 0.0
    most = MAX_DURATION_S / len(packets) / float(stream.time_base)
    if not 0 < gap <= most:
        gap = min(1 / (_declared_fps(stream) * float(stream.time_base)), most)
    return np.round(np.arange(len(packets)) * gap).astype(np.int64)


def _decoding_starts(pts_P: np.ndarray, key_P: np.ndarray) -> np.ndarray:
    """Per packet the last keyframe that is neither decoded nor displayed after it.

    A frame displayed before the keyframe it follows in the file (an open group's leading picture) needs the one before.
    """
    starts, keys, key_times = [], [], []  # keys: those that no later one precedes on screen; their times increase
    first = int(np.argmax(key_P))
    for position, (pts, is_key) in enumerate(zip(pts_P.tolist(), key_P.tolist(), strict=True)):
        if is_key:
            while key_times and key_times[-1] >= pts:
                keys.pop(), key_times.pop()
            keys.append(position), key_times.append(pts)
        fitting = bisect_right(key_times, pts)
        starts.append(keys[fitting - 1] if fitting else first if keys else 0)
    return np.array(starts, dtype=np.int64)


def _declared_fps(stream: av.video.stream.VideoStream) -> float:
    declared = float(stream.average_rate or 0)
    return declared if 1 / MAX_DURATION_S < declared <= MAX_FPS else USUAL_FPS


def _last_on_screen_s(declared_s: float, usual_gap_s: float, stream: av.video.stream.VideoStream) -> float:
    """How long the last frame stays: as declared, or as the others do."""
    if 0 < declared_s <= MAX_DURATION_S:
        return declared_s
    return usual_gap_s or 1 / _declared_fps(stream)


def _refuse_broken_clock(path: str, times: Sequence[int], stream: av.video.stream.VideoStream) -> None:
    lasts_s = (max(times) - min(times)) * stream.time_base if times else 0
    if lasts_s > MAX_DURATION_S:
        problem = f"has a broken clock: its frames lie {float(lasts_s):.4g} s apart"
        raise CorruptVideoError(path, problem, "re-encode or replace the file")


def _refuse_truncated(path: str, stream, held_s: float) -> None:
    declared_s = float(stream.duration * stream.time_base) if stream.duration else held_s
    if held_s < (1 - BAD_SHARE) * declared_s:
        problem = f"is truncated: {held_s:.2f} of {declared_s:.2f} s are there"
        raise CorruptVideoError(path, problem, "download it again or drop the row")
