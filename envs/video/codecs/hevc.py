"""HEVC: where decoding may begin, the order of pictures, pictures that are never shown."""

from __future__ import annotations

from collections.abc import Iterator

from envs.video.codecs.bits import Bits, HeaderError, without_emulation
from envs.video.codecs.content import HIDDEN, SHOWN, Content
from envs.video.codecs.nal import NamedSet, OrderCount, ParameterSets, UnitReader, behind_start_codes, sized_units

_VPS, _SPS, _PPS, _END_OF_SEQUENCE, _END_OF_STREAM = 32, 33, 34, 36, 37
_SKIPPED_LEADING = (8, 9)
_LEADING = range(6, 10)
_BROKEN_LINK = (16, 17, 18)
_IDR = (19, 20)
_RANDOM_ACCESS = range(16, 22)
_SET_BYTES = 256  # of a parameter set, enough for what is read of it


class HevcReader:
    """Reads packets in order. Not shown: pictures that say so, and those before a first keyframe on screen that refer
    to what came before it."""

    def __init__(self, extradata: bytes, wants_order: bool) -> None:
        """
        Args:
            wants_order: the order of display is to be read: it takes time.
        """
        is_hvcc = len(extradata) > 23 and extradata[0] == 1
        self._units = UnitReader((extradata[21] & 3) + 1 if is_hvcc else 0)
        units = _hvcc_sets(memoryview(extradata)) if is_hvcc else behind_start_codes(memoryview(extradata))
        self._sets = ParameterSets(dict(filter(None, map(_parameter_set, units))))
        self._has_ended = True  # the sequence before; its pictures are not to be referred to
        self._drops_leading = True
        self._wants_order, self._order = wants_order, OrderCount()

    def __call__(self, payload: memoryview, is_key: bool) -> Content:
        own, content = {}, None
        for unit in self._units(payload):
            kind = unit[0] >> 1 & 0x3F
            if kind in (_END_OF_SEQUENCE, _END_OF_STREAM):
                self._has_ended = True
            elif content is None and kind < _VPS:
                content = self._picture(unit, kind, is_key, own)
            elif content is None and (named := _parameter_set(unit)):
                own[named[0]] = named[1]
        return content or SHOWN

    def _picture(self, unit: memoryview, kind: int, is_key: bool, own: dict) -> Content:
        self._sets.update(own)
        if kind in _RANDOM_ACCESS:
            self._drops_leading = self._has_ended or kind in _BROKEN_LINK
            if self._drops_leading or kind in _IDR:
                self._order.begin_anew()
            self._has_ended = False
        try:
            is_output, order = self._slice(unit, kind)
        except (HeaderError, KeyError):
            is_output, order = True, None
        if not is_output or (kind in _SKIPPED_LEADING and self._drops_leading):
            return HIDDEN
        return Content(True, is_key and kind in _RANDOM_ACCESS and self._sets.suffice_from(own), order)

    def _slice(self, unit: memoryview, kind: int) -> tuple[bool, int | None]:
        """Whether the picture is shown, and its place in the order of display, if that is wanted."""
        bits = Bits(without_emulation(bytes(unit[2:34])))
        if not bits.flag():  # not the first slice: nothing was read of this picture's first one
            return True, None
        if 16 <= kind <= 23:
            bits.read(1)
        picture_set = self._sets.known[_PPS, bits.golomb()]
        sequence_number, says_output, extra_bits = _output_rules(picture_set)
        if not says_output and not self._wants_order:
            return True, None
        bits.read(extra_bits)
        bits.golomb()  # slice type
        is_output = bits.flag() if says_output else True
        if not self._wants_order:
            return is_output, None
        has_planes, order_bits = _order_rules(self._sets.known[_SPS, sequence_number])
        bits.read(2 * has_planes)
        low = 0 if kind in _IDR else bits.read(order_bits)
        is_base = unit[1] & 7 == 1 and kind not in _LEADING and (kind > 14 or kind % 2 == 1)
        return is_output, self._order(low, order_bits, is_base)


def _output_rules(picture_set: bytes) -> tuple[int, bool, int]:
    """Number of the sequence's set, whether slice headers say if they are shown, and how many bits are reserved."""
    bits = Bits(without_emulation(picture_set[2:34]))
    bits.golomb()
    sequence = bits.golomb()
    bits.read(1)
    return sequence, bits.flag(), bits.read(3)


def _order_rules(sequence_set: bytes) -> tuple[bool, int]:
    """Whether colours are coded apart, and how many bits of the order count slice headers have."""
    bits = _behind_profile(sequence_set)
    bits.golomb()
    has_planes = bits.golomb() == 3 and bits.flag()
    bits.golomb(), bits.golomb()  # width, height
    for _ in range(4 * bits.flag()):
        bits.golomb()  # the window that is shown
    bits.golomb(), bits.golomb()  # depths
    return has_planes, bits.golomb() + 4


def _behind_profile(sequence_set: bytes) -> Bits:
    bits = Bits(without_emulation(sequence_set[2:_SET_BYTES]))
    layers = bits.read(8) >> 1 & 7  # sub-layers, less one
    bits.read(88 + 8)  # general profile, level
    has = [(bits.flag(), bits.flag()) for _ in range(layers)]
    if layers:
        bits.read(2 * (8 - layers))
    for has_profile, has_level in has:
        bits.read(88 * has_profile + 8 * has_level)
    return bits


def _parameter_set(unit: memoryview) -> NamedSet | None:
    """Kind, number and content of a parameter set; None of other units, and of damaged ones."""
    kind = unit[0] >> 1 & 0x3F if len(unit) > 2 else 0
    if kind not in (_VPS, _SPS, _PPS):
        return None
    content = bytes(unit).rstrip(b"\0")
    try:
        if kind == _VPS:
            number = unit[2] >> 4
        else:
            number = (Bits(without_emulation(content[2:])) if kind == _PPS else _behind_profile(content)).golomb()
    except HeaderError:
        return None
    return (kind, number), content


def _hvcc_sets(extradata: memoryview) -> Iterator[memoryview]:
    place: int | None = 23
    for _ in range(extradata[22]):
        units, place = sized_units(extradata, place + 3, int.from_bytes(extradata[place + 1 : place + 3]))
        yield from units
        if place is None:
            return
