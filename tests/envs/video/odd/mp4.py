"""Sound mp4 and mov files whose boxes say unusual things: matrices, edit lists, durations, tables, fragments.

The movie's description (moov) may change in size freely where it stands behind the pictures; where it stands before
them only changes that keep its size are made.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np

PARENTS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"moof", b"traf", b"mvex")
ONE = 0x10000  # fixed point 16.16
FIRST_IS_ANOTHER = 0x04  # of a fragment: its first picture is of another kind than the others, a keyframe
ORIENTATIONS = {  # (a, b, c, d) of the display matrix
    "upright": (1, 0, 0, 1),
    "quarter": (0, 1, -1, 0),
    "half": (-1, 0, 0, -1),
    "three quarters": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "transversed": (0, -1, -1, 0),
}


@dataclass(slots=True)
class Box:
    kind: bytes
    body: bytes = b""
    boxes: list[Box] = field(default_factory=list)

    def find(self, *kinds: bytes) -> Box | None:
        """The first box down this way."""
        box: Box | None = self
        for kind in kinds:
            box = next((one for one in box.boxes if one.kind == kind), None)
            if box is None:
                return None
        return box

    def all(self, *kinds: bytes) -> list[Box]:
        """Every box down this way."""
        found = [self]
        for kind in kinds:
            found = [one for box in found for one in box.boxes if one.kind == kind]
        return found

    def as_bytes(self) -> bytes:
        body = self.body + b"".join(box.as_bytes() for box in self.boxes)
        return struct.pack(">I4s", len(body) + 8, self.kind) + body


def parse(content: bytes) -> Box:
    """The file as a box without a name whose boxes are those of the file."""
    return Box(b"", b"", list(_boxes(content)))


def _boxes(content: bytes):
    place = 0
    while place + 8 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, place)
        if not 8 <= size <= len(content) - place:
            raise ValueError("a box beyond the end, or of 64 bits")
        body = content[place + 8 : place + size]
        yield Box(kind, b"", list(_boxes(body))) if kind in PARENTS else Box(kind, body)
        place += size


def written(root: Box) -> bytes:
    return b"".join(box.as_bytes() for box in root.boxes)


def edited(change):
    """A mutation of a file that changes its boxes; None where it has none of the kind or must keep its size."""

    def mutation(content: bytes, suffix: str, rng: np.random.Generator) -> bytes | None:
        root = parse(content)
        video = _video(root)
        if video is None or change(root, video, rng) is False:
            return None
        out = written(root)
        kinds = [box.kind for box in root.boxes]
        is_before = b"mdat" in kinds and b"moof" not in kinds and kinds.index(b"moov") < kinds.index(b"mdat")
        return None if is_before and len(out) != len(content) else out

    return mutation


def _video(root: Box) -> Box | None:
    for trak in root.all(b"moov", b"trak"):
        if trak.find(b"mdia", b"hdlr").body[8:12] == b"vide":
            return trak
    return None


def _put(box: Box, place: int, form: str, *values) -> None:
    packed = struct.pack(form, *values)
    box.body = box.body[:place] + packed + box.body[place + len(packed) :]


def _get(box: Box, place: int, form: str):
    return struct.unpack_from(form, box.body, place)


def _timescales(root: Box, video: Box) -> tuple[int, int]:
    """Ticks of a second, of the movie and of the track."""
    movie, media = root.find(b"moov", b"mvhd"), video.find(b"mdia", b"mdhd")
    return _get(movie, 20 if movie.body[0] else 12, ">I")[0], _get(media, 20 if media.body[0] else 12, ">I")[0]


def _matrix_place(header: Box) -> int:
    return 52 if header.body[0] else 40


def oriented(root, video, rng):
    a, b, c, d = list(ORIENTATIONS.values())[rng.integers(8)]
    header = video.find(b"tkhd")
    _put(header, _matrix_place(header), ">9i", a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, 1 << 30)


def oriented_movie(root, video, rng):
    """The matrix of the whole movie, which counts as well."""
    a, b, c, d = list(ORIENTATIONS.values())[rng.integers(8)]
    header = root.find(b"moov", b"mvhd")
    _put(header, 48 if header.body[0] else 36, ">9i", a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, 1 << 30)


def oriented_and_stretched(root, video, rng):
    a, b, c, d = list(ORIENTATIONS.values())[rng.integers(8)]
    across, down = (round(float(factor) * ONE) for factor in rng.choice([0.5, 1.0, 1.5, 2.0], 2))
    header = video.find(b"tkhd")
    _put(header, _matrix_place(header), ">9i", a * across, b * across, 0, c * down, d * down, 0, 0, 0, 1 << 30)


def edit_list(root, video, rng):
    """One to three stretches of the track, in order, out of order or twice; some empty, one at rest."""
    movie, media = _timescales(root, video)
    lasts_s = _get(video.find(b"mdia", b"mdhd"), 24 if video.find(b"mdia", b"mdhd").body[0] else 16, ">I")[0] / media
    entries = []
    if rng.random() < 0.3:
        entries.append((round(rng.uniform(0.05, 1.0) * movie), -1, 1))
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        start_s = float(rng.choice([0.0, 0.0, rng.uniform(0, 0.6 * lasts_s)]))
        length_s = float(rng.choice([lasts_s - start_s, rng.uniform(0.1, max(0.2, lasts_s - start_s))]))
        entries.append((round(length_s * movie), round(start_s * media), 1))
    body = struct.pack(">II", 0, len(entries))
    body += b"".join(struct.pack(">IiHH", length, start, rate, 0) for length, start, rate in entries)
    video.boxes = [box for box in video.boxes if box.kind != b"edts"]
    place = next(number for number, box in enumerate(video.boxes) if box.kind == b"mdia")
    video.boxes.insert(place, Box(b"edts", b"", [Box(b"elst", body)]))


def no_edit_list(root, video, rng):
    video.boxes = [box for box in video.boxes if box.kind != b"edts"]


def _table(video: Box, kind: bytes) -> Box:
    return video.find(b"mdia", b"minf", b"stbl", kind)


def _runs(box: Box, form: str = ">II") -> list[tuple[int, int]]:
    return [_get(box, 8 + 8 * number, form) for number in range(_get(box, 4, ">I")[0])]


def _set_runs(box: Box, runs, form: str = ">II") -> None:
    box.body = box.body[:4] + struct.pack(">I", len(runs)) + b"".join(struct.pack(form, *run) for run in runs)


def last_stays(root, video, rng):
    """By the table of times; the declared lengths follow or do not."""
    table = _table(video, b"stts")
    steps = [step for count, step in _runs(table) for _ in range(count)]
    if len(steps) < 2:
        return False
    more = round(steps[0] * rng.uniform(1, 60))
    steps[-1] += more
    _set_runs(table, [(1, step) for step in steps])
    if rng.random() < 0.7:
        _lengthen(root, video, more)
    return None


def _lengthen(root: Box, video: Box, ticks: int) -> None:
    movie, media = _timescales(root, video)
    for header, by, old, new in (
        (video.find(b"mdia", b"mdhd"), ticks, 16, 24),
        (video.find(b"tkhd"), ticks * movie // media, 20, 28),
        (root.find(b"moov", b"mvhd"), ticks * movie // media, 16, 24),
    ):
        place, form = (new, ">Q") if header.body[0] else (old, ">I")
        _put(header, place, form, _get(header, place, form)[0] + by)
    edit = video.find(b"edts", b"elst")
    if edit is not None and not edit.body[0]:
        last = 8 + 12 * (_get(edit, 4, ">I")[0] - 1)
        _put(edit, last, ">I", _get(edit, last, ">I")[0] + ticks * movie // media)


def uneven_table(root, video, rng):
    table = _table(video, b"stts")
    steps = [step for count, step in _runs(table) for _ in range(count)]
    _set_runs(table, [(1, max(1, round(step * rng.uniform(0.05, 3)))) for step in steps])
    if _table(video, b"ctts") is not None:
        return False
    return None


def equal_times(root, video, rng):
    """Two frames at the same time: the former is never shown."""
    table = _table(video, b"stts")
    steps = [step for count, step in _runs(table) for _ in range(count)]
    if _table(video, b"ctts") is not None or len(steps) < 4:
        return False
    steps[int(rng.integers(1, len(steps) - 1))] = 0
    _set_runs(table, [(1, step) for step in steps])
    return None


def offsets_moved(root, video, rng):
    """All frames shown later than decoded by as much again, or (version 1) earlier."""
    table = _table(video, b"ctts")
    if table is None:
        return False
    runs, by = _runs(table, ">Ii"), int(rng.choice([512, 3000, -512]))
    table.body = bytes([1]) + table.body[1:]
    _set_runs(table, [(count, offset + by) for count, offset in runs], ">Ii")
    return None


def other_timescale(root, video, rng):
    """The same ticks, of another length."""
    header, factor = video.find(b"mdia", b"mdhd"), float(rng.choice([0.25, 0.5, 2, 3.3]))
    place = 20 if header.body[0] else 12
    _put(header, place, ">I", max(1, round(_get(header, place, ">I")[0] * factor)))
    video.boxes = [box for box in video.boxes if box.kind != b"edts"]


def other_lengths(root, video, rng):
    """Declared lengths: none, unknown, longer or shorter than what is there."""
    factor = float(rng.choice([0.0, 0.5, 1.05, 1.5, 2.0, -1]))
    kinds = rng.random(3) < 0.6
    headers = ((video.find(b"mdia", b"mdhd"), 16, 24), (video.find(b"tkhd"), 20, 28))
    for (header, old, new), is_changed in zip((*headers, (root.find(b"moov", b"mvhd"), 16, 24)), kinds, strict=True):
        place, form, most = (new, ">Q", 2**64 - 1) if header.body[0] else (old, ">I", 2**32 - 1)
        if is_changed:
            _put(header, place, form, most if factor < 0 else min(most, round(_get(header, place, form)[0] * factor)))


def no_keyframe_table(root, video, rng):
    """Without one every picture is said to be a keyframe."""
    parent = video.find(b"mdia", b"minf", b"stbl")
    parent.boxes = [box for box in parent.boxes if box.kind != b"stss"]


def wrong_keyframe_table(root, video, rng):
    table = _table(video, b"stss")
    if table is None:
        return False
    count = sum(run[0] for run in _runs(_table(video, b"stts")))
    keys = sorted({1, *rng.integers(1, count + 1, int(rng.integers(1, 6))).tolist()})
    table.body = table.body[:4] + struct.pack(f">I{len(keys)}I", len(keys), *keys)
    return None


def pixel_shape(root, video, rng):
    entry = _table(video, b"stsd")
    across, down = ((4, 3), (2, 1), (1, 2), (16, 11), (64, 45), (0, 1), (1, 1))[rng.integers(7)]
    found = entry.body.find(b"pasp")
    if found < 0:
        size = _get(entry, 8, ">I")[0]
        box = struct.pack(">I4sII", 16, b"pasp", across, down)
        entry.body = entry.body[: 8 + size] + box + entry.body[8 + size :]
        _put(entry, 8, ">I", size + 16)
    else:
        _put(entry, found + 4, ">II", across, down)


def displayed_size(root, video, rng):
    """Width and height of the track, which some players stretch to."""
    header = video.find(b"tkhd")
    place = _matrix_place(header) + 36
    _put(header, place, ">II", int(rng.integers(64, 250)) * ONE, int(rng.integers(64, 250)) * ONE)


def colours(root, video, rng):
    entry = _table(video, b"stsd")
    size = _get(entry, 8, ">I")[0]
    codes = (int(rng.choice([1, 5, 6, 9])), 1, int(rng.choice([1, 5, 6, 9])), int(rng.choice([0, 0x80])))
    box = struct.pack(">I4s4sHHHB", 19, b"colr", b"nclx", *codes)
    entry.body = entry.body[: 8 + size] + box + entry.body[8 + size :]
    _put(entry, 8, ">I", size + 19)


def track_disabled(root, video, rng):
    header = video.find(b"tkhd")
    header.body = header.body[:1] + b"\0\0\0" + header.body[4:]


def fragments_dropped(root, video, rng):
    """One fragment with its pictures is missing: a gap by the clocks of the others."""
    places = [number for number, box in enumerate(root.boxes) if box.kind == b"moof"]
    if len(places) < 3:
        return False
    place = int(rng.choice(places[1:]))
    del root.boxes[place : place + 2]
    return None


def fragments_doubled(root, video, rng):
    places = [number for number, box in enumerate(root.boxes) if box.kind == b"moof"]
    if len(places) < 2:
        return False
    place = int(rng.choice(places))
    root.boxes[place + 2 : place + 2] = root.boxes[place : place + 2]
    return None


def fragments_moved(root, video, rng):
    """From some fragment on, one that begins with a keyframe, the clock is another one: later, or from zero again."""
    parts = root.all(b"moof", b"traf")
    clocks = [part.find(b"tfdt") for part in parts]
    keys = [place for place, part in enumerate(parts) if place and part.find(b"trun").body[3] & FIRST_IS_ANOTHER]
    if not keys or any(clock.body[0] != 1 for clock in clocks):
        return False
    place = int(rng.choice(keys))
    by = max(int(rng.choice([5_000, 40_000, -(10**9)])), -_get(clocks[place], 4, ">Q")[0])
    for clock in clocks[place:]:
        _put(clock, 4, ">Q", _get(clock, 4, ">Q")[0] + by)
    return None


def fragments_without_clock(root, video, rng):
    for part in root.all(b"moof", b"traf"):
        clock = part.find(b"tfdt")
        if clock is None:
            return False
        clock.kind = b"free"
    return None


def other_boxes(root, video, rng):
    """Boxes that nobody needs to know, between all others."""
    if rng.random() < 0.5:
        root.boxes.append(Box(b"free", bytes(int(rng.integers(0, 200)))))
    root.find(b"moov").boxes.insert(0, Box(b"uuid", bytes(16) + b"unknown"))
    video.boxes.append(Box(b"udta", struct.pack(">I4s", 12, b"abcd") + b"text"))


CHANGES = (
    *(oriented, oriented, oriented_movie, oriented_and_stretched, edit_list, edit_list, edit_list, no_edit_list),
    *(last_stays, uneven_table, equal_times, offsets_moved, other_timescale, other_lengths, no_keyframe_table),
    *(wrong_keyframe_table, pixel_shape, displayed_size, colours, track_disabled, fragments_dropped),
    *(fragments_doubled, fragments_moved, fragments_without_clock, other_boxes),
)
