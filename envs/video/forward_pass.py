"""One pass forward through an open file: what leaves the decoder, picture by picture, with the number of its frame.

Packets are told by their position in the file, not by their times, which may be missing, wrong or there twice: each
takes its position through the decoder in the place of its time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import av
import numpy as np

from envs.video.file import BREAKS_OFF
from envs.video.index import VideoIndex
from envs.video.packets import decode_packet

NONREF_IS_SAFE = ("h264", "mpeg4", "mpeg2video")  # codecs whose "non-reference" leaves nothing to later pictures
SILENT_ABOUT_DAMAGE = ("mjpeg",)  # codecs whose decoders leave out what they cannot read, and say so only if told to
JUMP_PACKETS = 32  # nearer entries are reached by reading on: a seek costs more
LANDING_PACKETS = 64  # read after a seek to find out where it went


class DamageMetError(Exception):
    """Something is damaged: what comes out may depend on where decoding began."""


class ForwardPass:
    """Decodes what is wanted and what that refers to; or everything, from the start."""

    def __init__(
        self, index: VideoIndex, open_anew: Callable[[], av.container.InputContainer], wanted: Iterable[int] | None
    ) -> None:
        """
        Args:
            open_anew: the file, read from its start.
            wanted: numbers of frames; None: everything is decoded, whatever is damaged.
        """
        self._index, self._open_anew, self._is_whole = index, open_anew, wanted is None
        is_one = index.num_parts == 1  # behind a seam decoders refer to whatever they have
        self._may_skip = wanted is not None and index.codec in NONREF_IS_SAFE and is_one and not index.counts_frames
        self._wanted_P = {int(index.packet_N[number]) for number in wanted or ()}
        self._pictures: deque[av.VideoFrame] = deque()  # decoded, not yet handed out
        self._counted = 0
        self._lost: list[int] = []  # positions of packets that gave no picture where they should have
        self._entry = 0  # where decoding began
        self._begin()

    def skip_towards(self, number: int) -> None:
        """Move on to the entry from which this frame can be decoded, if it is still ahead."""
        start = int(self._index.start_P[self._index.packet_N[number]])
        if self._is_whole or start <= self._position:
            return
        if self._position == 0 and self._index.needs_first_packet and (packet := self._next_packet()) is not None:
            decode_packet(self._decoder, packet)
        if start - self._position > JUMP_PACKETS and self._index.num_parts == 1:
            self._jump(start)
        while self._position < start and self._next_packet() is not None:
            pass
        self._enter(start)

    def next_picture(self) -> tuple[int, av.VideoFrame] | None:
        """The next picture in display order with its frame number; None at the end of the file.

        Raises:
            DamageMetError: not everything is decoded, and something is damaged.
        """
        while True:
            while self._pictures:
                picture = self._pictures.popleft()
                number = self._number(picture)
                if number is not None:
                    return number, picture
            if self._has_ended:
                return None
            packet = self._next_packet()
            if packet is None:
                self._has_ended = True
                self._decoder.skip_frame = "DEFAULT"
                self._pictures.extend(decode_packet(self._decoder, None) or ())
                continue
            self._decode(packet)

    def meet_damage(self) -> None:
        """Leave, if anything was left out, for a pass that leaves out nothing.

        Raises:
            DamageMetError: something was.
        """
        if not self._is_whole:
            raise DamageMetError

    def _begin(self) -> None:
        self._container = self._open_anew()
        self._stream = self._container.streams[self._index.stream_index]
        self._decoder = self._stream.codec_context
        self._decoder.thread_count = 1  # parallelism is over requests, and skipping by packet needs one thread
        if self._index.codec in SILENT_ABOUT_DAMAGE:
            self._decoder.options = {"err_detect": "explode"}
        self._packets = self._container.demux(self._stream)
        self._ahead: deque[av.Packet] = deque()  # read to find out where a seek went
        self._position = 0  # of the packet to be read next
        self._has_ended = False
        self._expect_reordering()

    def _expect_reordering(self) -> None:
        """Decoders of H.264 find out as they go how many pictures to hold back, and drop one each time they learn."""
        if self._index.codec == "h264" and self._decoder.reorder_depth < self._index.reorder_depth:
            self._decoder.reorder_depth = self._index.reorder_depth

    def _enter(self, start: int) -> None:
        self._decoder.flush_buffers()
        self._expect_reordering()
        self._pictures.clear()
        self._entry = start

    def _decode(self, packet: av.Packet) -> None:
        position = self._position - 1
        skipping = "NONREF" if self._may_skip and position not in self._wanted_P else "DEFAULT"
        if self._decoder.skip_frame != skipping:
            self._decoder.skip_frame = skipping
        packet.pts = position
        pictures = decode_packet(self._decoder, packet)
        if pictures is None:
            self._lost.append(position)
            if not self._is_leading(position):
                self.meet_damage()
        for picture in pictures or ():
            if picture.is_corrupt and not (picture.pts is not None and self._is_leading(picture.pts)):
                self.meet_damage()
            self._pictures.append(picture)

    def _is_leading(self, position: int) -> bool:
        """A picture shown before the entry, which cannot be decoded from there: nobody waits for it."""
        times_P = self._index.ticks_P
        return 0 <= position < len(times_P) and times_P[position] < times_P[self._entry]

    def _number(self, picture: av.VideoFrame) -> int | None:
        position = picture.pts
        if not self._index.counts_frames:
            known = position is not None and 0 <= position < len(self._index.number_P)
            return int(self._index.number_P[position]) if known and self._index.number_P[position] >= 0 else None
        lost = sum(position is not None and lost < position for lost in self._lost)
        self._counted += 1
        return min(self._counted + lost, self._index.num_frames) - 1

    def _next_packet(self) -> av.Packet | None:
        """The next packet that holds something; None after the last, or where the file breaks off."""
        packet = self._ahead.popleft() if self._ahead else self._read()
        if packet is not None:
            self._position += 1
        return packet

    def _read(self) -> av.Packet | None:
        try:
            for packet in self._packets:
                if packet.size:
                    return packet
        except MemoryError:
            raise  # FFmpeg's own is one, too
        except BREAKS_OFF:
            pass
        return None

    def _jump(self, start: int) -> None:
        """Seek to an entry; demuxers may land before it, which is read on from, or behind it: then all is read."""
        times_P = self._index.seek_P
        for goal in (int(times_P[start]), int(times_P.min())):
            if self._lands_before(start, goal):
                return
        self._begin()

    def _lands_before(self, start: int, goal: int) -> bool:
        try:
            self._container.seek(goal, stream=self._stream, backward=True)
        except av.error.FFmpegError:
            return False
        self._packets = self._container.demux(self._stream)
        self._ahead.clear()
        for _ in range(LANDING_PACKETS):
            packet = self._read()
            if packet is None:
                return False
            position = self._find(packet)
            if position is not None:
                self._position = position
                self._ahead.append(packet)
                return position <= start
        return False

    def _find(self, packet: av.Packet) -> int | None:
        """Position of a packet, by where it stands in the file; None if that is not known or not unique."""
        if packet.pos is None:
            return None
        found = np.flatnonzero((self._index.place_P == packet.pos) & (self._index.size_P == packet.size))
        return int(found[0]) if len(found) == 1 else None
