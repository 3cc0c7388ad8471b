"""Pixels at given times, stateless: index and times in, frames out (PyAV).

Decoding starts at the last keyframe that will do, jumps only when a later group of pictures is needed, and skips
pictures that nobody wants and no other picture refers to.

Legend: N displayable frames of a clip · T frames asked for · H W pixels · C colours (RGB).
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from envs.video.file import BREAKS_OFF, CorruptVideoError, demuxer, regular_file
from envs.video.index import BAD_SHARE, VideoIndex
from envs.video.packets import decode_packet

NONREF_IS_SAFE = ("h264", "vp8", "mpeg4", "mpeg2video")  # codecs whose "non-reference" means referred to by nobody
JUMP_PACKETS = 32  # nearer keyframes are reached by reading on: a seek costs more
Picture = tuple[int, av.VideoFrame, bool]  # frame number, the picture, whether it stands in for a damaged one


def read_frames(
    index: VideoIndex, times_s: Sequence[float], size_HW: tuple[int, int]
) -> tuple[np.ndarray, tuple[float, ...], int]:
    """The frame on screen at each time, in the order asked; times may repeat and go backwards.

    Returns:
        Pixels (T, H, W, 3) uint8 RGB, resized by area; presentation time of each frame; how many were damaged and are
        shown by their nearest neighbour.
    Raises:
        FrameRangeError: a time outside the clip.
        CorruptVideoError: more than a tenth of the frames is damaged.
    """
    asked_T = index.frames_on_screen(times_s)
    scaler = Scaler(index.rotation, size_HW)
    wanted, places_T = np.unique(asked_T, return_inverse=True)
    shown, pixels, damaged = [], [], []
    for number, picture, is_damaged in decode(index, wanted):
        shown.append(number)
        pixels.append(scaler(picture))
        damaged.append(is_damaged)
    return in_order_asked(index, places_T, shown, pixels, damaged)


def in_order_asked(
    index: VideoIndex,
    places_T: np.ndarray,
    shown: Sequence[int],
    pixels: Sequence[np.ndarray],
    damaged: Sequence[bool],
) -> tuple[np.ndarray, tuple[float, ...], int]:
    """Distinct frames to the order and multiplicity asked for, or the refusal of too many damaged ones."""
    num_damaged = int(np.sum(np.asarray(damaged)[places_T]))
    if num_damaged > max(1, BAD_SHARE * len(places_T)):
        problem = f"{num_damaged} of {len(places_T)} frames asked for are damaged"
        raise CorruptVideoError(index.path, problem, "re-encode or replace the file")
    times_s_T = tuple(float(index.times_s_N[shown[place]]) for place in places_T)
    return np.stack([pixels[place] for place in places_T]), times_s_T, num_damaged


class Scaler:
    """Pictures to RGB of one size, by swscale's area filter: the cheapest antialiased one, closest to a box mean."""

    def __init__(self, rotation: int, size_HW: tuple[int, int]) -> None:
        self._quarter_turns = rotation // 90
        self._height, self._width = size_HW if rotation in (0, 180) else size_HW[::-1]
        self._reformatter = VideoReformatter()  # keeps its filter tables from picture to picture

    def __call__(self, picture: av.VideoFrame) -> np.ndarray:
        scaled = self._reformatter.reformat(
            picture, self._width, self._height, "rgb24", interpolation=Interpolation.AREA, threads=1
        )
        pixels_HWC = scaled.to_ndarray()
        return np.rot90(pixels_HWC, self._quarter_turns) if self._quarter_turns else pixels_HWC


def decode(index: VideoIndex, wanted: Sequence[int]) -> Iterator[Picture]:
    """Decode the frames of these numbers (sorted, distinct) and yield one picture for each, in order.

    A frame that does not come out is replaced by the nearest that does, and marked damaged; its number is then that of
    the picture shown.

    Raises:
        CorruptVideoError: nothing comes out at all.
        VideoOpenError: the file can no longer be opened, or is another one by now.
        MemoryError: there was too little for it.
    """
    with regular_file(index.path, index.file_key) as file, demuxer(file) as container:
        run = _ForwardRun(index, container, wanted)
        before: tuple[int, av.VideoFrame] | None = None
        waiting = deque(int(number) for number in wanted)
        while waiting:
            run.skip_towards(waiting[0])
            after = run.next_picture()
            if after is None and before is None:
                raise CorruptVideoError(index.path, "no picture can be decoded", "re-encode or replace the file")
            while waiting and (after is None or after[0] >= waiting[0]):
                yield _nearest(index, waiting.popleft(), before, after)
            before = after or before


def _nearest(
    index: VideoIndex, number: int, before: tuple[int, av.VideoFrame] | None, after: tuple[int, av.VideoFrame] | None
) -> Picture:
    candidates = [candidate for candidate in (before, after) if candidate is not None]
    shown, picture = min(candidates, key=lambda c: abs(index.times_s_N[c[0]] - index.times_s_N[number]))
    return shown, picture, shown != number or picture.is_corrupt


class _ForwardRun:
    """One pass forward through an open file that leaves out what nobody asks for."""

    def __init__(self, index: VideoIndex, container: av.container.InputContainer, wanted: Sequence[int]) -> None:
        self._index, self._container = index, container
        self._stream = container.streams[index.stream_index]
        self._decoder = self._stream.codec_context
        self._decoder.thread_count = 1  # parallelism is over requests, and skipping by packet needs one thread
        self._may_skip = index.codec in NONREF_IS_SAFE and not index.counts_frames
        self._wanted_pts = {int(index.pts_P[index.packet_N[number]]) for number in wanted}
        self._packets = container.demux(self._stream)
        self._position = 0  # of the packet to be read next
        self._pictures: deque[av.VideoFrame] = deque()  # decoded, not yet handed out
        self._counted = 0

    def skip_towards(self, number: int) -> None:
        """Move on to the keyframe from which this frame can be decoded, if it is still ahead."""
        start = int(self._index.start_P[self._index.packet_N[number]])
        if start <= self._position:
            return
        self._decoder.flush_buffers()
        self._pictures.clear()
        if start - self._position > JUMP_PACKETS:
            self._jump(start)
        while self._position < start and (packet := self._next_packet()) is not None:
            self._pass(packet)

    def next_picture(self) -> tuple[int, av.VideoFrame] | None:
        """The next picture in display order with its frame number; None at the end of the file."""
        while True:
            while self._pictures:
                picture = self._pictures.popleft()
                number = self._number(picture)
                if number is not None:
                    return number, picture
            packet = self._next_packet()
            if packet is None:
                return None
            self._choose_skipping(packet)
            self._pictures.extend(decode_packet(self._decoder, packet))
            self._pass(packet)

    def _next_packet(self) -> av.Packet | None:
        """The next packet, the empty one that drains the decoder included; None after it, or where the file breaks."""
        try:
            return next(self._packets, None)
        except MemoryError:
            raise  # FFmpeg's own is one, too
        except BREAKS_OFF:
            return None

    def _choose_skipping(self, packet: av.Packet) -> None:
        skipping = "NONREF" if self._may_skip and packet.pts not in self._wanted_pts else "DEFAULT"
        if self._decoder.skip_frame != skipping:
            self._decoder.skip_frame = skipping

    def _pass(self, packet: av.Packet) -> None:
        """Note that this packet is behind us. Packets the index does not list (hidden references) do not count."""
        self._position = max(self._position, self._index.position_of_pts.get(packet.pts, -1) + 1)

    def _number(self, picture: av.VideoFrame) -> int | None:
        if not self._index.counts_frames:
            return self._index.number_of_pts.get(picture.pts)
        self._counted += 1
        return min(self._counted, self._index.num_frames) - 1

    def _jump(self, start: int) -> None:
        """Seek to a keyframe; demuxers may land earlier, which is read on from, or later, which is refused here."""
        for goal in (int(self._index.pts_P[start]), int(self._index.pts_P.min())):
            landed = self._seek(goal)
            position = self._index.position_of_pts.get(landed.pts) if landed is not None else None
            if position is not None and position <= start:
                self._packets = itertools.chain([landed], self._packets)
                self._position = position
                return
        problem = f"cannot be sought to {goal}: the demuxer lands behind it"
        raise CorruptVideoError(self._index.path, problem, "remux the file")

    def _seek(self, goal: int) -> av.Packet | None:
        """The first packet after a seek."""
        try:
            self._container.seek(goal, stream=self._stream, backward=True)
        except av.error.FFmpegError:
            return None
        self._packets = self._container.demux(self._stream)
        return self._next_packet()
