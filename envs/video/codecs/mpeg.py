"""MPEG-1, MPEG-2 and MPEG-4 Part 2: picture headers behind start codes; Theora's packet types."""

from __future__ import annotations

from collections import deque

from envs.video.codecs.bits import Bits, HeaderError
from envs.video.codecs.content import ENTRY, HIDDEN, SHOWN, Content

_PICTURE, _SEQUENCE = b"\0\0\1\0", b"\0\0\1\xb3"  # MPEG-1 and -2
_INTRA, _BIDIRECTIONAL = 1, 3
_GROUP = 1 << 20  # more than the pictures between two references
_VOP, _VOL = b"\0\0\1\xb6", b"\0\0\1"  # MPEG-4: a picture; a layer, told by the byte that follows
_VOL_CODES = range(0x20, 0x30)
_RECTANGULAR = 0
_EXTENDED_SHAPE = 15  # of a pixel: its two sides follow


class TypeOrder:
    """The order of display by kinds of pictures: those that refer to both sides are shown before the one that was
    decoded before them."""

    def __init__(self) -> None:
        self._references = self._between = 0

    def __call__(self, is_bidirectional: bool) -> int:
        """The next picture's place."""
        if is_bidirectional:
            self._between += 1
            return (self._references - 1) * _GROUP + self._between
        self._references, self._between = self._references + 1, 0
        return self._references * _GROUP


class Mpeg2Reader:
    """Reads packets of MPEG-1 and -2 in order."""

    def __init__(self, extradata: bytes) -> None:
        self._order = TypeOrder()

    def __call__(self, payload: memoryview, is_key: bool) -> Content:
        """An entry is a picture that needs no other, with the sequence header that holds its quantisers."""
        content = bytes(payload)
        place = content.find(_PICTURE)
        if place < 0 or place + 6 > len(content):
            return Content(True, False, self._order(is_bidirectional=False))
        kind = content[place + 5] >> 3 & 7
        is_entry = is_key and kind == _INTRA and 0 <= content.find(_SEQUENCE) < place
        return Content(True, is_entry, self._order(kind == _BIDIRECTIONAL))


class Mpeg4Reader:
    """Reads packets in order: DivX and Xvid pack a picture and the next one into one packet and leave an empty picture
    in the place of the second; and they code nothing where nothing moves."""

    def __init__(self, extradata: bytes) -> None:
        self._time_bits: int | None = None  # of a picture's time; None before a layer's header has come
        self._order = TypeOrder()
        self._pending: deque[int] = deque()  # kinds of pictures packed before, to come out for later packets
        self._read_layers(extradata)

    def __call__(self, payload: memoryview, is_key: bool) -> Content:
        content = bytes(payload)
        self._read_layers(content)
        kinds = self._pictures(content)
        if kinds is None:
            return Content(True, False, self._order(is_bidirectional=False))
        is_entry = is_key and not self._pending and kinds[:1] == [0]
        self._pending.extend(kinds)
        if not self._pending:
            return HIDDEN
        return Content(True, is_entry, self._order(self._pending.popleft() == 2))

    def _pictures(self, content: bytes) -> list[int] | None:
        """Kind of each picture that is coded: 0 alone, 1 from one before, 2 from both sides, 3 sprite."""
        place, kinds, are_there = content.find(_VOP), [], False
        while place >= 0:
            are_there = True
            try:
                kind, is_coded = self._picture(content[place + 4 : place + 24])
            except HeaderError:
                return None
            kinds += [kind] if is_coded else []
            place = content.find(_VOP, place + 4)
        return kinds if are_there else None

    def _picture(self, header: bytes) -> tuple[int, bool]:
        bits = Bits(header)
        kind = bits.read(2)
        if self._time_bits is None:
            return kind, True
        while bits.flag():  # seconds gone by
            pass
        bits.read(1 + self._time_bits + 1)
        return kind, bits.flag()

    def _read_layers(self, content: bytes) -> None:
        place = content.find(_VOL)
        while 0 <= place < len(content) - 4:
            if content[place + 3] in _VOL_CODES:
                try:
                    self._time_bits = _time_bits(Bits(content[place + 4 : place + 68]))
                except HeaderError:
                    return
            if content[place + 3] == _VOP[3]:
                return  # headers stand before pictures
            place = content.find(_VOL, place + 3)


def _time_bits(bits: Bits) -> int:
    """How many bits a picture's time has, of a layer's header.

    Raises:
        HeaderError: a layer that is no plain rectangle.
    """
    bits.read(1 + 8)
    if bits.flag():
        bits.read(4 + 3)  # version, priority
    if bits.read(4) == _EXTENDED_SHAPE:
        bits.read(16)
    if bits.flag():  # control parameters
        bits.read(2 + 1)
        if bits.flag():  # of the buffer
            bits.read(79)
    if bits.read(2) != _RECTANGULAR:
        raise HeaderError("a layer with a shape")
    bits.read(1)
    return max((bits.read(16) - 1).bit_length(), 1)


def read_theora(payload: memoryview, is_key: bool) -> Content:
    """Headers come again where streams were joined; a keyframe says so itself."""
    if payload[0] & 0x80:
        return HIDDEN
    return ENTRY if is_key and not payload[0] & 0x40 else SHOWN
