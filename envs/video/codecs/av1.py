"""AV1: the open bitstream units of a temporal unit."""

from __future__ import annotations

from collections.abc import Iterator

from envs.video.codecs.bits import Bits, HeaderError
from envs.video.codecs.content import ENTRY, HIDDEN, SHOWN, Content

_SEQUENCE_HEADER, _FRAME_HEADER, _FRAME = 1, 3, 6
_KEY_FRAME = 0


class Av1Reader:
    """Reads packets in order: a frame's header can be read once its sequence's is known."""

    def __init__(self, extradata: bytes) -> None:
        self._is_still = False  # reduced headers, of still pictures: everything is a shown keyframe
        if extradata[:1] == b"\x81" and len(extradata) > 4:  # av1C: units follow four bytes
            self._note_sequences(memoryview(extradata)[4:])

    def __call__(self, payload: memoryview, is_key: bool) -> Content:
        try:
            has_sequence = self._note_sequences(payload)
            frames = [_frame(body, self._is_still) for kind, body in _units(payload) if kind in (_FRAME_HEADER, _FRAME)]
        except HeaderError:
            return SHOWN
        if not frames:
            return SHOWN  # damaged: a frame that is missing rather than one that was never there
        if not any(is_shown for is_shown, _ in frames):
            return HIDDEN
        is_shown, begins_anew = frames[0]
        return ENTRY if is_key and has_sequence and is_shown and begins_anew else SHOWN

    def _note_sequences(self, payload: memoryview) -> bool:
        sequences = [body for kind, body in _units(payload) if kind == _SEQUENCE_HEADER]
        for body in sequences:
            self._is_still = Bits(body[:1]).read(5) & 1 == 1  # profile (3), still picture, reduced header
        return bool(sequences)


def _units(payload: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Type and content of each unit."""
    place = 0
    while place < len(payload):
        header = payload[place]
        place += 2 if header & 0x04 else 1  # an extension byte
        if header & 0x02:
            size, place = _leb128(payload, place)
        else:
            size = len(payload) - place
        if place + size > len(payload):
            raise HeaderError("a unit reaches beyond its packet")
        yield header >> 3 & 15, payload[place : place + size]
        place += size


def _leb128(payload: memoryview, place: int) -> tuple[int, int]:
    """A number, seven bits a byte, and the place behind it."""
    number = 0
    for shift in range(0, 56, 7):
        if place >= len(payload):
            raise HeaderError("a unit's size ends early")
        byte = payload[place]
        number |= (byte & 0x7F) << shift
        place += 1
        if not byte & 0x80:
            return number, place
    raise HeaderError("a unit's size has no end")


def _frame(body: memoryview, is_still: bool) -> tuple[bool, bool]:
    """Whether a frame is shown, and whether it is a keyframe."""
    if is_still:
        return True, True
    bits = Bits(body[:1])
    if bits.flag():  # an existing frame is shown
        return True, False
    kind = bits.read(2)
    return bits.flag(), kind == _KEY_FRAME
