"""Videos broken on purpose, the same ones for the same seed: what disks, networks and enemies do to files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"udta")  # boxes made of boxes
EXTREMES = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
Damage = Callable[[bytes, np.random.Generator], bytes]


@dataclass(frozen=True, slots=True)
class Box:
    """A box of an mp4 file: size (4 bytes), kind (4 bytes), content."""

    kind: bytes
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Mutant:
    """A broken file and how it came about."""

    name: str
    content: bytes


def mutants(name: str, content: bytes, count: int, seed: int) -> Iterator[Mutant]:
    """`count` broken copies of a file, each kind of damage in turn, a tenth of them damaged twice."""
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        damage = DAMAGES[number % len(DAMAGES)]
        broken, how = damage(content, rng), damage.__name__
        if rng.random() < 0.1:
            again = DAMAGES[rng.integers(len(DAMAGES))]
            broken, how = again(broken or content, rng), f"{how}+{again.__name__}"
        yield Mutant(f"{number:05d}-{how}-{name}", broken)


def boxes(content: bytes, start: int = 0, end: int | None = None) -> Iterator[Box]:
    """Every box of an mp4 file, outer ones before those in them; nothing where there are none."""
    end = len(content) if end is None else end
    while start + 8 <= end:
        size, kind = int.from_bytes(content[start : start + 4]), content[start + 4 : start + 8]
        if not 8 <= size <= end - start:
            return
        yield Box(kind, start, start + size)
        if kind in CONTAINERS:
            yield from boxes(content, start + 8, start + size)
        start += size


def flipped_bits(content: bytes, rng: np.random.Generator) -> bytes:
    return _flipped(content, rng, 0, len(content))


def flipped_bits_in_header(content: bytes, rng: np.random.Generator) -> bytes:
    """In what describes the pictures: ftyp and moov of an mp4, the first kilobyte of others."""
    headers = [box for box in boxes(content) if box.kind in (b"ftyp", b"moov")] or [_first_kilobyte(content)]
    box = headers[rng.integers(len(headers))]
    return _flipped(content, rng, box.start, box.end)


def flipped_bits_in_pictures(content: bytes, rng: np.random.Generator) -> bytes:
    found = [box for box in boxes(content) if box.kind == b"mdat"]
    if not found:
        return _flipped(content, rng, min(1024, len(content) - 1), len(content))
    return _flipped(content, rng, found[0].start, found[0].end)


def truncated(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: rng.integers(len(content))]


def zeroed(content: bytes, rng: np.random.Generator) -> bytes:
    start, length = _range(content, rng)
    return content[:start] + bytes(length) + content[start + length :]


def cut_out(content: bytes, rng: np.random.Generator) -> bytes:
    start, length = _range(content, rng)
    return content[:start] + content[start + length :]


def stuffed(content: bytes, rng: np.random.Generator) -> bytes:
    """Noise put in."""
    start, length = _range(content, rng)
    return content[:start] + rng.bytes(length) + content[start:]


def swapped(content: bytes, rng: np.random.Generator) -> bytes:
    """Two boxes that follow each other, the other way round."""
    found = list(boxes(content))
    pairs = [(one, other) for one in found for other in found if one.end == other.start]
    if not pairs:
        return stuffed(content, rng)
    one, other = pairs[rng.integers(len(pairs))]
    turned = content[other.start : other.end] + content[one.start : one.end]
    return content[: one.start] + turned + content[other.end :]


def doubled(content: bytes, rng: np.random.Generator) -> bytes:
    box = _any_box(content, rng)
    return content[: box.end] + content[box.start : box.end] + content[box.end :]


def removed(content: bytes, rng: np.random.Generator) -> bytes:
    box = _any_box(content, rng)
    return content[: box.start] + content[box.end :]


def absurd_size(content: bytes, rng: np.random.Generator) -> bytes:
    """A box that says that it is empty, endless or huge."""
    return _with_number(content, _any_box(content, rng).start, rng)


def absurd_number(content: bytes, rng: np.random.Generator) -> bytes:
    """A count, a duration, an offset or a size in the header that cannot be."""
    leaves = [box for box in boxes(content) if box.kind not in (*CONTAINERS, b"mdat") and box.end - box.start >= 16]
    box = leaves[rng.integers(len(leaves))] if leaves else _first_kilobyte(content)
    places = (box.end - box.start - 8) // 4
    return _with_number(content, box.start + 8 + 4 * int(rng.integers(max(1, min(places, 32)))), rng)


DAMAGES: tuple[Damage, ...] = (
    *(flipped_bits, flipped_bits_in_header, flipped_bits_in_pictures, truncated, zeroed, cut_out),
    *(stuffed, swapped, doubled, removed, absurd_size, absurd_number, absurd_number),
)


def _flipped(content: bytes, rng: np.random.Generator, start: int, end: int) -> bytes:
    broken = bytearray(content)
    for place in rng.integers(start, max(end, start + 1), size=2 ** rng.integers(0, 8)):
        broken[place] ^= 1 << rng.integers(8)
    return bytes(broken)


def _first_kilobyte(content: bytes) -> Box:
    return Box(b"", 0, min(1024, len(content)))


def _range(content: bytes, rng: np.random.Generator) -> tuple[int, int]:
    return int(rng.integers(len(content))), int(2 ** rng.uniform(0, 14))


def _any_box(content: bytes, rng: np.random.Generator) -> Box:
    """A box of an mp4; of others, any stretch."""
    found = list(boxes(content))
    if found:
        return found[rng.integers(len(found))]
    start, length = _range(content, rng)
    return Box(b"", start, min(start + length, len(content)))


def _with_number(content: bytes, place: int, rng: np.random.Generator) -> bytes:
    number = int(EXTREMES[rng.integers(len(EXTREMES))])
    return content[:place] + number.to_bytes(4) + content[place + 4 :]
