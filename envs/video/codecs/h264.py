"""H.264: where decoding may begin, the order of pictures, fields that have packets of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from envs.video.codecs.bits import Bits, HeaderError, without_emulation
from envs.video.codecs.content import HIDDEN, Content
from envs.video.codecs.nal import NamedSet, OrderCount, ParameterSets, UnitReader, behind_start_codes, sized_units

_SLICE, _IDR, _MESSAGE, _SEQUENCE_SET, _PICTURE_SET = 1, 5, 6, 7, 8
_SLICES = range(1, 6)
_RECOVERY_POINT = 6
_SET_BYTES = 256  # of a parameter set, enough for what is read of it
_WITH_CHROMA = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)  # profiles


@dataclass(frozen=True, slots=True)
class _Sequence:
    """What a sequence's parameter set says of its slice headers."""

    has_planes: bool  # colours coded apart
    frame_bits: int
    order_kind: int
    order_bits: int
    is_progressive: bool


@dataclass(frozen=True, slots=True)
class _Slice:
    """The start of a slice header."""

    frame: int
    field: int | None  # 0 top, 1 bottom; None: a frame
    order_kind: int
    order_low: int
    order_bits: int


class H264Reader:
    """Reads packets in order."""

    def __init__(self, extradata: bytes, wants_order: bool) -> None:
        """
        Args:
            wants_order: the order of display is to be read: it takes time.
        """
        is_avcc = extradata[:1] == b"\1" and len(extradata) > 6
        self._length_bytes = (extradata[4] & 3) + 1 if is_avcc else 0
        self._units = UnitReader(self._length_bytes)
        units = _avcc_sets(memoryview(extradata)) if is_avcc else behind_start_codes(memoryview(extradata))
        self._sets = ParameterSets(dict(filter(None, map(_parameter_set, units))))
        self._wants_order, self._order, self._decoded = wants_order, OrderCount(), 0
        self._open_field: tuple[int, int] | None = None  # frame and parity of a field whose other half is to come
        self._parsed: dict[bytes, _Sequence] = {}
        self._reads_slices = wants_order or self._has_fields()

    def __call__(self, payload: memoryview, is_key: bool) -> Content:
        if not self._reads_slices and not is_key and self._length_bytes:
            first = payload[self._length_bytes] & 0x1F if len(payload) > self._length_bytes else 0
            if first == _SLICE:
                return Content(is_shown=True, is_entry=False)  # nothing stands before it
        own, recovers, slice_unit = {}, False, None
        for unit in self._units(payload):
            kind = unit[0] & 0x1F
            if kind in _SLICES:
                slice_unit = unit
                break
            if kind == _MESSAGE and is_key:
                recovers = recovers or _recovers_at_once(unit)
            elif named := _parameter_set(unit):
                own[named[0]] = named[1]
        if own:
            self._sets.update(own)
            self._reads_slices = self._wants_order or self._has_fields()
        if slice_unit is None:
            return Content(is_shown=True, is_entry=False)
        is_idr = slice_unit[0] & 0x1F == _IDR
        is_entry = is_key and (is_idr or recovers) and self._sets.suffice_from(own)
        return self._placed(slice_unit, is_idr, is_entry)

    def _placed(self, unit: memoryview, is_idr: bool, is_entry: bool) -> Content:
        """With its place in the order of display, if that is wanted; the second field of a frame gives no picture."""
        self._decoded += 1
        if not self._reads_slices:
            return Content(True, is_entry)
        try:
            header = self._slice(unit, is_idr)
        except (HeaderError, KeyError):
            return Content(True, is_entry)
        if self._open_field is not None and header.field is not None:
            frame, field = self._open_field
            if frame == header.frame and field != header.field:
                self._open_field = None
                return HIDDEN
        self._open_field = (header.frame, header.field) if header.field is not None else None
        if not self._wants_order:
            return Content(True, is_entry)
        if is_idr:
            self._order.begin_anew()
        if header.order_kind == 0:
            return Content(True, is_entry, self._order(header.order_low, header.order_bits, unit[0] & 0x60 != 0))
        return Content(True, is_entry, self._decoded if header.order_kind == 2 else None)  # 2: as they are decoded

    def _has_fields(self) -> bool:
        try:
            sets = [content for (kind, _), content in self._sets.known.items() if kind == _SEQUENCE_SET]
            return any(not self._sequence(content).is_progressive for content in sets)
        except HeaderError:
            return False

    def _slice(self, unit: memoryview, is_idr: bool) -> _Slice:
        bits = Bits(without_emulation(bytes(unit[1:33])))
        bits.golomb(), bits.golomb()  # first block, type
        sequence_number, has_bottom_delta = _picture_set(self._sets.known[_PICTURE_SET, bits.golomb()])
        sequence = self._sequence(self._sets.known[_SEQUENCE_SET, sequence_number])
        bits.read(2 * sequence.has_planes)
        frame = bits.read(sequence.frame_bits)
        field = None
        if not sequence.is_progressive and bits.flag():
            field = bits.read(1)
        if is_idr:
            bits.golomb()
        low = 0
        if sequence.order_kind == 0:
            low = bits.read(sequence.order_bits)
            low += min(bits.signed_golomb(), 0) if has_bottom_delta and field is None else 0
        return _Slice(frame, field, sequence.order_kind, low, sequence.order_bits)

    def _sequence(self, content: bytes) -> _Sequence:
        if content not in self._parsed:
            self._parsed[content] = _sequence(content)
        return self._parsed[content]


def _sequence(content: bytes) -> _Sequence:
    bits = Bits(without_emulation(content[1:_SET_BYTES]))
    profile = bits.read(24) >> 16
    bits.golomb()
    has_planes = False
    if profile in _WITH_CHROMA:
        chroma = bits.golomb()
        has_planes = chroma == 3 and bits.flag()
        bits.golomb(), bits.golomb(), bits.read(1)
        if bits.flag():
            for number in range(12 if chroma == 3 else 8):
                if bits.flag():
                    _skip_scaling_list(bits, 16 if number < 6 else 64)
    frame_bits, order_kind, order_bits = bits.golomb() + 4, bits.golomb(), 0
    if order_kind == 0:
        order_bits = bits.golomb() + 4
    elif order_kind == 1:
        bits.read(1), bits.signed_golomb(), bits.signed_golomb()
        for _ in range(min(bits.golomb(), 255)):
            bits.signed_golomb()
    bits.golomb(), bits.read(1), bits.golomb(), bits.golomb()  # references, gaps, width, height
    return _Sequence(has_planes, frame_bits, order_kind, order_bits, is_progressive=bits.flag())


def _skip_scaling_list(bits: Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.signed_golomb()) % 256
        last = following or last


def _picture_set(content: bytes) -> tuple[int, bool]:
    """Number of the sequence's parameter set, and whether slices say how far the bottom field is from the top."""
    bits = Bits(without_emulation(content[1:33]))
    bits.golomb()
    sequence = bits.golomb()
    bits.read(1)
    return sequence, bits.flag()


def _avcc_sets(extradata: memoryview) -> Iterator[memoryview]:
    place: int | None = 5
    for mask in (0x1F, 0xFF):  # sequences, then pictures
        count = extradata[place] & mask if place < len(extradata) else 0
        units, place = sized_units(extradata, place + 1, count)
        yield from units
        if place is None:
            return


def _parameter_set(unit: memoryview) -> NamedSet | None:
    """Kind, number and content of a parameter set; None of other units, and of damaged ones."""
    kind = unit[0] & 0x1F if len(unit) else 0
    if kind not in (_SEQUENCE_SET, _PICTURE_SET):
        return None
    header = without_emulation(bytes(unit[:_SET_BYTES]))
    try:
        number = Bits(header[4:] if kind == _SEQUENCE_SET else header[1:]).golomb()
    except HeaderError:
        return None
    return (kind, number), bytes(unit).rstrip(b"\0")


def _recovers_at_once(unit: memoryview) -> bool:
    """Whether a message says that pictures are right from this one on, not only some pictures later."""
    message = without_emulation(bytes(unit[1:]))
    place = 0
    while place + 2 < len(message):
        kind = size = 0
        while place < len(message) and message[place] == 0xFF:
            kind, place = kind + 255, place + 1
        kind, place = kind + message[place] if place < len(message) else -1, place + 1
        while place < len(message) and message[place] == 0xFF:
            size, place = size + 255, place + 1
        size, place = size + message[place] if place < len(message) else 0, place + 1
        if kind == _RECOVERY_POINT and place < len(message):
            return message[place] & 0x80 != 0  # pictures until recovery: 0
        place += size
    return False
