"""What a video file holds, learned by reading its packets: when each frame is on screen and where decoding can start.

Legend: P packets in decoding order · N displayable frames in display order.

Times are seconds on the video clock: 0 is the first displayable frame. A frame is on screen at t if it is the last one
whose presentation time is <= t.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import av
import numpy as np

BAD_SHARE = 0.1  # of a stream, or of the frames asked for, that may be missing
UNTRUSTED_CLOCKS = ("avi", "mpeg")  # containers that carry no presentation times; what demuxers make up is often wrong
SAME_TIME_S = 1e-6  # two times closer than this are one: slack for floats
PAST_END_S = 0.011  # asked times are in centiseconds: this far beyond the end is still the last frame


class VideoError(Exception):
    """A video that cannot be used: which one, what is wrong, what to do about it."""

    def __init__(self, path: str, problem: str, remedy: str) -> None:
        super().__init__(path, problem, remedy)
        self.path, self.problem, self.remedy = path, problem, remedy

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}; {self.remedy}"


class VideoOpenError(VideoError):
    """There is no such file, or no demuxer understands it."""


class NoVideoStreamError(VideoError):
    """The file is sound but holds no moving picture."""


class CorruptVideoError(VideoError):
    """The stream is damaged beyond what may be bridged with neighbouring frames."""


class VideoTimeoutError(VideoError):
    """Decoding did not end before its deadline."""


class FrameRangeError(VideoError):
    """A time was asked for at which the clip shows nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class VideoIndex:
    """The clock of a video's best stream."""

    path: str
    file_key: tuple[str, int, int]  # path, bytes, mtime: the identity of what was indexed
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
        VideoOpenError: no such file, or not a video container.
        NoVideoStreamError: audio only.
        CorruptVideoError: nothing decodable, or more than a tenth of the declared stream is missing.
    """
    path = os.fspath(path)
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise VideoOpenError(path, f"cannot be opened ({error})", "check the path and the video root") from error
    if not stat.S_ISREG(status.st_mode):
        raise VideoOpenError(path, "is not a regular file", "give the path of a video file")
    if status.st_size == 0:
        raise VideoOpenError(path, "is empty (zero bytes)", "download it again")
    return _index(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _index(path: str, size_bytes: int, mtime_ns: int) -> VideoIndex:
    with open_container(path) as container:
        stream = best_stream(container, path)
        stream.codec_context.thread_count = 1
        packets, picture = _read_packets(container, stream)
        if picture is None or not any(packet.is_key for packet in packets):
            raise CorruptVideoError(path, "no picture can be decoded", "re-encode or replace the file")
        return _build(path, (path, size_bytes, mtime_ns), container, stream, packets, picture)


def open_container(path: str) -> av.container.InputContainer:
    """Open for reading; use it in a `with`.

    Raises:
        VideoOpenError: not a video container.
    """
    try:
        return av.open(path, metadata_errors="ignore")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoOpenError(path, f"is not a readable video ({error})", "replace the file") from error


def best_stream(container: av.container.InputContainer, path: str) -> av.video.stream.VideoStream:
    """The stream a player would show; cover art does not count.

    Raises:
        NoVideoStreamError: there is none.
    """
    moving = _moving_streams(container)
    best = container.streams.best("video")
    if not moving:
        raise NoVideoStreamError(path, "has no video stream (audio only?)", "drop the row or replace the file")
    return next((stream for stream in moving if best is not None and stream.index == best.index), moving[0])


def _moving_streams(container: av.container.InputContainer) -> list[av.video.stream.VideoStream]:
    cover = av.stream.Disposition.attached_pic
    return [stream for stream in container.streams.video if not stream.disposition & cover]


@dataclass(frozen=True, slots=True)
class _Packet:
    pts: int | None
    dts: int | None
    duration: int
    is_key: bool
    is_discarded: bool


def _read_packets(container, stream) -> tuple[list[_Packet], av.VideoFrame | None]:
    """All packets up to the end or to where the file breaks off, and the first picture that decodes."""
    packets, picture = [], None
    try:
        for packet in container.demux(stream):
            if picture is None:
                picture = next(iter(decode_packet(stream.codec_context, packet)), None)
            if packet.size and _is_shown(packet, stream.codec_context.name):
                packets.append(
                    _Packet(packet.pts, packet.dts, packet.duration or 0, packet.is_keyframe, packet.is_discard)
                )
    except av.error.FFmpegError:
        pass  # the file breaks off here; how much is missing is judged by its declared duration
    return packets, picture


def decode_packet(decoder: av.CodecContext, packet: av.Packet | None) -> list[av.VideoFrame]:
    """Pictures that come out; none if the packet is damaged (its frames then count as missing)."""
    try:
        return decoder.decode(packet)
    except av.error.FFmpegError:
        return []


def _is_shown(packet: av.Packet, codec: str) -> bool:
    """VP8 hides its alternate reference frames in packets of their own, told by a bit of the first byte."""
    return not (codec == "vp8" and bytes(packet)[0] & 0x10 == 0)


def _build(path, file_key, container, stream, packets: list[_Packet], picture: av.VideoFrame) -> VideoIndex:
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
    usual_gap_s = float(np.median(gaps_s)) if len(gaps_s) else 1 / float(stream.average_rate or 25)
    duration_s = float(times_s_N[-1]) + (packets[packet_N[-1]].duration * seconds or usual_gap_s)
    _refuse_truncated(path, stream, float(np.ptp(pts_P)) * seconds + usual_gap_s)
    rotation = round(picture.rotation) % 360
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
        num_video_streams=len(_moving_streams(container)),
        has_discarded=any(packet.is_discarded for packet in packets),
        counts_frames=counts_frames,
        frame_bytes=sum(plane.buffer_size for plane in picture.planes),
        pts_P=pts_P,
        start_P=np.zeros(len(packets), dtype=np.int64) if counts_frames else _decoding_starts(pts_P, key_P),
        packet_N=packet_N,
        times_s_N=times_s_N,
        position_of_pts={pts: position for position, pts in reversed(list(enumerate(pts_P.tolist())))},
        number_of_pts={int(pts_P[packet]): number for number, packet in enumerate(packet_N)},
    )


def _even_clock(packets: list[_Packet], stream: av.video.stream.VideoStream) -> np.ndarray:
    """Times for frames that have none: one packet after the other, as far apart as decoding times usually are."""
    decoded_at = sorted(packet.dts for packet in packets if packet.dts is not None)
    gap = float(np.median(np.diff(decoded_at))) if len(decoded_at) > 1 else 0.0
    gap = gap or 1 / float((stream.average_rate or 25) * stream.time_base)
    return np.round(np.arange(len(packets)) * gap).astype(np.int64)


def _decoding_starts(pts_P: np.ndarray, key_P: np.ndarray) -> np.ndarray:
    """Per packet the last keyframe that is neither decoded nor displayed after it.

    A frame displayed before the keyframe it follows in the file (an open group's leading picture) needs the one before.
    """
    starts, keys = [], []
    for position, (pts, is_key) in enumerate(zip(pts_P.tolist(), key_P.tolist(), strict=True)):
        if is_key:
            keys.append(position)
        fitting = (key for key in reversed(keys) if pts_P[key] <= pts)
        starts.append(next(fitting, keys[0] if keys else 0))
    return np.array(starts, dtype=np.int64)


def _refuse_truncated(path: str, stream, held_s: float) -> None:
    declared_s = float(stream.duration * stream.time_base) if stream.duration else held_s
    if held_s < (1 - BAD_SHARE) * declared_s:
        problem = f"is truncated: {held_s:.2f} of {declared_s:.2f} s are there"
        raise CorruptVideoError(path, problem, "download it again or drop the row")
