"""What H.264 and HEVC share: units of a packet, parameter sets, picture order counts.

A keyframe is an entry if it needs no earlier picture and no parameter set that only an earlier packet brought.
"""

from __future__ import annotations

from collections.abc import Iterator

SetKey = tuple[int, int]  # kind and number of a parameter set
NamedSet = tuple[SetKey, bytes]

_START_CODE = b"\0\0\1"
_PERIOD = 1 << 34  # more than any picture order count


class UnitReader:
    """Splits packets into units: behind their lengths (mp4, Matroska) or behind start codes (streams)."""

    def __init__(self, length_bytes: int) -> None:
        self._length_bytes = length_bytes  # 0: start codes

    def __call__(self, payload: memoryview) -> Iterator[memoryview]:
        return self._behind_lengths(payload) if self._length_bytes else behind_start_codes(payload)

    def _behind_lengths(self, payload: memoryview) -> Iterator[memoryview]:
        place = 0
        while place + self._length_bytes < len(payload):
            start = place + self._length_bytes
            end = start + int.from_bytes(payload[place:start])
            if end > start:
                yield payload[start:end]
            place = end


def sized_units(extradata: memoryview, place: int, count: int) -> tuple[list[memoryview], int | None]:
    """`count` units of a codec's header in mp4, each behind its length in two bytes, and where they end; None: they
    break off, and what was whole before is given."""
    units = []
    for _ in range(count):
        end = place + 2 + int.from_bytes(extradata[place : place + 2])
        if end <= place + 2:
            return units, None
        units.append(extradata[place + 2 : end])
        place = end
    return units, place


def behind_start_codes(payload: memoryview) -> Iterator[memoryview]:
    content = bytes(payload)
    place = content.find(_START_CODE)
    while 0 <= place < len(content) - 3:
        end = content.find(_START_CODE, place + 3)
        yield payload[place + 3 : end if end >= 0 else len(content)]
        place = end


class ParameterSets:
    """Parameter sets in force, and those that a decoder which begins later, with the `initial` ones, would miss."""

    def __init__(self, initial: dict[SetKey, bytes]) -> None:
        self.known = dict(initial)
        self._initial = initial
        self._only_in_band: set[SetKey] = set()  # differ from the initial ones

    def update(self, own: dict[SetKey, bytes]) -> None:
        """Take in those of a packet."""
        for key, content in own.items():
            self.known[key] = content
            if self._initial.get(key) != content:
                self._only_in_band.add(key)

    def suffice_from(self, own: dict[SetKey, bytes]) -> bool:
        """Whether a decoder that begins with a packet that brings these misses none."""
        return self._only_in_band <= own.keys()


class OrderCount:
    """Picture order counts, of which a slice header only has the low bits, made whole and increasing over the file."""

    def __init__(self) -> None:
        self._period, self._reference = 0, 0  # keyframes that begin anew so far; count of the last reference

    def begin_anew(self) -> None:
        """What follows is shown after all that came before."""
        self._period, self._reference = self._period + 1, 0

    def __call__(self, low: int, bits: int, is_reference: bool) -> int:
        """The place in display order of a picture whose count has these low bits."""
        span = 1 << bits
        count = self._reference - self._reference % span + low
        if count - self._reference >= span // 2:
            count -= span
        elif self._reference - count >= span // 2 + 1:
            count += span
        if is_reference:
            self._reference = count
        return self._period * _PERIOD + count
