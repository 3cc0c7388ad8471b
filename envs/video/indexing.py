"""Indices made: a file's packets are read once, and what they say is kept for as long as the file stays the same.

Legend: P packets in decoding order · N displayable frames in display order.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass, field

import av
import numpy as np

from envs.video.clock import (
    MAX_DURATION_S,
    MAX_PARTS,
    ONLY_DECODING_TIMES,
    Clock,
    Stream,
    decoding_starts,
    read_clock,
    reorder_depth,
)
from envs.video.codecs.readers import needs_first_packet
from envs.video.file import (
    CorruptVideoError,
    FileKey,
    RegularFile,
    demuxer,
    regular_file,
)
from envs.video.index import VideoIndex
from envs.video.layout import Layout, read_layout
from envs.video.length import MOV, Length, length_s
from envs.video.orientation import orientation_of
from envs.video.packets import (
    MAX_PACKETS,
    Packet,
    best_stream,
    moving_streams,
    picture_bytes,
    read_packets,
    refuse_huge,
)
from envs.video.pixel_shape import shape_on_screen

USUAL_FPS = 25.0  # where a stream does not say, or says something absurd
MAX_FPS = 10_000.0  # declared
READ_ON = ("avi", "matroska,webm")  # containers whose demuxers read on where another file begins
SAME_TIME_SHARE = 1 / 3  # of frames that come on at the time of the next one; more is no clock


def index_video(path: str | os.PathLike[str]) -> VideoIndex:
    """Index a file by demuxing it (one picture is decoded, for its true size); cached by path, size and mtime.

    Raises:
        VideoOpenError: no such file, not a regular one, or not a video container.
        NoVideoStreamError: audio only.
        CorruptVideoError: nothing decodable, a clock, pictures or pixels beyond all measure, several files joined of
            which only the first would be shown, or more than a tenth of the declared stream is missing.
        MemoryError: there was too little for it.
    """
    path = os.fspath(path)
    with regular_file(path) as file:
        index = INDICES.find(file.key)
        if index is None:
            with demuxer(file) as container:
                index = _index(file, container)
            INDICES.keep(index)
    return index


@dataclass(slots=True)
class IndexCache:
    """Indices of the latest files, as many as `max_packets` packets allow (about 70 bytes each). Safe in threads."""

    max_packets: int
    _indices: OrderedDict[FileKey, VideoIndex] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def held_packets(self) -> int:
        """Of all indices."""
        return sum(len(index.ticks_P) for index in self._indices.values())

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


def _index(file: RegularFile, container: av.container.InputContainer) -> VideoIndex:
    path, stream = file.key.path, best_stream(container, file.key.path)
    if stream.codec_context is None:
        raise CorruptVideoError(path, "is in a codec that nobody knows", "re-encode or replace the file")
    refuse_huge(path, stream.codec_context)
    if not stream.time_base or stream.time_base < 0:
        raise CorruptVideoError(path, "has no clock (its time base is 0)", "re-encode or replace the file")
    stream.codec_context.thread_count = 1
    packets, picture = read_packets(path, container, stream)
    if picture is None or not any(packet.is_key for packet in packets):
        raise CorruptVideoError(path, "no picture can be decoded", "re-encode or replace the file")
    return _build(file, container, stream, packets, picture)


def _build(file: RegularFile, container, stream, packets: list[Packet], picture: av.VideoFrame) -> VideoIndex:
    path, tick_s, layout = file.key.path, float(stream.time_base), read_layout(file, container.format.name)
    clock = _clock(path, container, stream, packets, layout)
    _refuse_joined(file, container.format.name, layout, clock, packets)
    packet_N, first = clock.packet_N, int(clock.ticks_P[clock.packet_N[0]])
    times_s_N = (clock.ticks_P[packet_N] - first) * stream.time_base.numerator / stream.time_base.denominator
    held = max(max(clock.end, int(clock.ticks_P.max())) - int(clock.ticks_P.min()), clock.decoded)
    began = clock.origin if container.format.name in ONLY_DECODING_TIMES else clock.origin + first
    length = Length(began * tick_s, float(times_s_N[-1]), (clock.end - first) * tick_s, held * tick_s)
    duration_s = length_s(path, container, stream, layout, length)
    orientation = orientation_of(picture)
    shape = shape_on_screen(path, picture.height, picture.width, stream.sample_aspect_ratio)
    height, width = shape[::-1] if orientation.swaps_sides else shape
    number_P = np.full(len(packets), -1)
    number_P[packet_N] = np.arange(len(packet_N))
    return VideoIndex(
        path=path,
        file_key=file.key,
        container=container.format.name,
        stream_index=stream.index,
        codec=stream.codec_context.name,
        duration_s=duration_s,
        native_fps=len(packet_N) / duration_s,
        height=height,
        width=width,
        orientation=orientation,
        pixel_aspect=float(stream.sample_aspect_ratio or 1),
        is_vfr=_is_uneven(times_s_N, tick_s),
        num_video_streams=len(moving_streams(container)),
        num_parts=clock.num_parts,
        has_discarded=len(packet_N) < len(packets),
        counts_frames=clock.is_counted,
        needs_first_packet=needs_first_packet(stream.codec_context),
        reorder_depth=reorder_depth(clock.ticks_P),
        frame_bytes=picture_bytes(picture),
        ticks_P=clock.ticks_P,
        seek_P=np.array([_seek_time(packet, container.format.name) for packet in packets], dtype=np.int64),
        place_P=np.array([packet.place for packet in packets], dtype=np.int64),
        size_P=np.array([packet.size for packet in packets], dtype=np.int64),
        start_P=_starts(clock, packets),
        number_P=number_P,
        packet_N=packet_N,
        times_s_N=times_s_N,
    )


def _clock(path: str, container, stream, packets: list[Packet], layout: Layout) -> Clock:
    stamps = [stamp for packet in packets for stamp in (packet.pts, packet.dts) if stamp is not None]
    lasts_s = (max(stamps) - min(stamps)) * stream.time_base if stamps else 0
    if lasts_s > MAX_DURATION_S:
        problem = f"has a broken clock: its frames lie {float(lasts_s):.4g} s apart"
        raise CorruptVideoError(path, problem, "re-encode or replace the file")
    declared_fps = float(stream.average_rate or 0)
    fps = declared_fps if 1 / MAX_DURATION_S < declared_fps <= MAX_FPS else USUAL_FPS
    tick_s, most_ticks = float(stream.time_base), MAX_DURATION_S / len(packets) / float(stream.time_base)
    clock = read_clock(
        packets,
        Stream(
            container=container.format.name,
            may_reorder=stream.codec_context.codec.reorder,
            reorder_depth=stream.codec_context.reorder_depth,
            tick_s=tick_s,
            may_restart=layout.is_fragmented or container.format.name != MOV,
            frame_ticks=min(1 / (fps * tick_s), most_ticks),
            origin=min(stamps, default=0),
        ),
    )
    if clock.num_parts > MAX_PARTS:
        problem = f"has a broken clock: it starts again more than {MAX_PARTS} times"
        raise CorruptVideoError(path, problem, "re-encode or replace the file")
    if not len(clock.packet_N):
        raise CorruptVideoError(path, "no frame is displayable", "re-encode or replace the file")
    equal = int(np.sum(np.diff(clock.ticks_P[clock.packet_N]) == 0))
    if equal > SAME_TIME_SHARE * len(clock.packet_N):
        problem = f"has a broken clock: {equal} of {len(clock.packet_N)} frames come on when the next one does"
        raise CorruptVideoError(path, problem, "re-encode or replace the file")
    return clock


def _refuse_joined(file: RegularFile, container: str, layout: Layout, clock: Clock, packets: list[Packet]) -> None:
    middle = (layout.last_file_at + file.key.size) / 2  # of the last file: behind it there may be sound alone
    is_read_on = container in READ_ON and max(packet.place for packet in packets) > middle
    if layout.is_fragmented and clock.num_parts > 1:
        problem = f"has a clock that starts again in its fragments ({clock.num_parts - 1} times): players skip some"
    elif layout.num_files > 1 and not layout.is_fragmented and not is_read_on:
        problem = f"is {layout.num_files} files joined end to end, of which only the first ones would be shown"
    else:
        return
    raise CorruptVideoError(file.key.path, problem, "join them with a tool that knows the container (ffmpeg's concat)")


def _starts(clock: Clock, packets: list[Packet]) -> np.ndarray:
    if clock.is_counted:
        return np.zeros(len(packets), dtype=np.int64)
    return decoding_starts(clock.ticks_P, np.array([packet.is_entry for packet in packets]), clock.seams)


def _seek_time(packet: Packet, container: str) -> int:
    """What a container is asked for to find a packet: AVI counts chunks, others go by presentation."""
    stamps = (packet.dts, packet.pts) if container in ONLY_DECODING_TIMES else (packet.pts, packet.dts)
    return next((stamp for stamp in stamps if stamp is not None), 0)


def _is_uneven(times_s_N: np.ndarray, tick_s: float) -> bool:
    gaps_s = np.diff(times_s_N)
    if not len(gaps_s):
        return False
    usual_s = float(np.median(gaps_s))
    return float(np.abs(gaps_s - usual_s).max()) > max(0.1 * usual_s, 1.01 * tick_s)
