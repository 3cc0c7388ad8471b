"""Sound Matroska and WebM files whose elements say unusual things: clocks, lengths, shapes, groups, laces, no index."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np

SEGMENT, CLUSTER, GROUP, SIMPLE, BLOCK = 0x18538067, 0x1F43B675, 0xA0, 0xA3, 0xA1
INFO, TRACKS, TRACK, VIDEO, CUES, SEEK_HEAD, TAGS = (
    0x1549A966,
    0x1654AE6B,
    0xAE,
    0xE0,
    0x1C53BB6B,
    0x114D9B74,
    0x1254C367,
)
CLUSTER_TIME, BLOCK_LASTS, REFERENCE, VOID, LACING = 0xE7, 0x9B, 0xFB, 0xEC, 0x9C
CHECKSUM, CODEC = 0xBF, 0x86
LENGTH, TICK_NS, FRAME_NS, TRACK_TYPE, NUMBER = 0x4489, 0x2AD7B1, 0x23E383, 0x83, 0xD7
DISPLAY_WIDTH, DISPLAY_HEIGHT, DISPLAY_UNIT, PIXEL_WIDTH, PIXEL_HEIGHT = 0x54B0, 0x54BA, 0x54B2, 0xB0, 0xBA
PROJECTION, PROJECTION_TYPE, ROLL = 0x7670, 0x7671, 0x7675
PARENTS = (SEGMENT, CLUSTER, GROUP, INFO, TRACKS, TRACK, VIDEO)
UNKNOWN = (1 << 56) - 1  # a size that says: until something else begins


@dataclass(slots=True)
class Element:
    kind: int
    body: bytes = b""
    elements: list[Element] = field(default_factory=list)
    is_endless: bool = False

    def find(self, *kinds: int) -> Element | None:
        element: Element | None = self
        for kind in kinds:
            element = next((one for one in element.elements if one.kind == kind), None)
            if element is None:
                return None
        return element

    def as_bytes(self) -> bytes:
        body = self.body + b"".join(one.as_bytes() for one in self.elements)
        kind = self.kind.to_bytes((self.kind.bit_length() + 7) // 8)
        return kind + ((1 << 56) | (UNKNOWN if self.is_endless else len(body))).to_bytes(8) + body


def parse(content: bytes) -> list[Element]:
    found, place = [], 0
    while place < len(content):
        kind, place = _number(content, place, keeps_marker=True)
        size, place = _number(content, place)
        end = min(place + size, len(content))
        body = content[place:end]
        found.append(Element(kind, b"", parse(body)) if kind in PARENTS else Element(kind, body))
        place = end
    return found


def _number(content: bytes, place: int, keeps_marker: bool = False) -> tuple[int, int]:
    length = 9 - content[place].bit_length()
    if length > 8:
        raise ValueError("no EBML number")
    number = int.from_bytes(content[place : place + length])
    return number if keeps_marker else number & ((1 << 7 * length) - 1), place + length


def edited(change):
    """A mutation of a file that changes its elements; the index (Cues), whose places would be wrong, goes."""

    def mutation(content: bytes, suffix: str, rng: np.random.Generator) -> bytes | None:
        elements = parse(content)
        segment = next(one for one in elements if one.kind == SEGMENT)
        if change is not misplaced_index:
            drop(segment, CUES, SEEK_HEAD)
        if change(segment, rng) is False:
            return None
        for parent in (segment, *segment.elements):
            drop(parent, CHECKSUM)
        return b"".join(one.as_bytes() for one in elements)

    return mutation


def drop(parent: Element, *kinds: int) -> None:
    parent.elements = [one for one in parent.elements if one.kind not in kinds]


def set_to(parent: Element, kind: int, body: bytes) -> None:
    drop(parent, kind)
    parent.elements.append(Element(kind, body))


def clusters(segment: Element) -> list[Element]:
    return [one for one in segment.elements if one.kind == CLUSTER]


def _video(segment: Element) -> Element:
    tracks = segment.find(TRACKS).elements
    return next(track for track in tracks if track.kind == TRACK and track.find(TRACK_TYPE).body == b"\x01")


def _is_video(segment: Element, block: Element) -> bool:
    return block.body[0] & 0x7F == int.from_bytes(_video(segment).find(NUMBER).body)


def no_index(segment, rng):
    return None


def misplaced_index(segment, rng):
    """Cues that point to where nothing is: an element before the clusters has grown."""
    segment.elements.insert(0, Element(VOID, bytes(int(rng.integers(1, 3000)))))


def one_cluster_each(segment, rng):
    """Every block in a cluster of its own."""
    out = []
    for one in segment.elements:
        if one.kind != CLUSTER:
            out.append(one)
            continue
        for block in one.elements:
            if block.kind in (SIMPLE, GROUP):
                body = block if block.kind == SIMPLE else block.find(BLOCK)
                time = int.from_bytes(one.find(CLUSTER_TIME).body) + struct.unpack_from(">h", body.body, 1)[0]
                body.body = body.body[:1] + b"\0\0" + body.body[3:]
                out.append(Element(CLUSTER, b"", [Element(CLUSTER_TIME, max(0, time).to_bytes(8)), block]))
    segment.elements = out


def endless(segment, rng):
    """As written live: nobody knew how long it would be."""
    segment.is_endless = True
    for cluster in clusters(segment):
        cluster.is_endless = True
    drop(segment.find(INFO), LENGTH)


def other_length(segment, rng):
    info, factor = segment.find(INFO), float(rng.choice([0.0, 0.5, 1.05, 2.0, -1.0]))
    length = info.find(LENGTH)
    if factor < 0 or length is None:
        drop(info, LENGTH)
        return
    old = struct.unpack(">d" if len(length.body) == 8 else ">f", length.body)[0]
    set_to(info, LENGTH, struct.pack(">d", old * factor))


def other_tick(segment, rng):
    set_to(segment.find(INFO), TICK_NS, int(rng.choice([333_333, 500_000, 2_000_000, 40_000_000])).to_bytes(8))


def other_frame_length(segment, rng):
    track, frame_ns = _video(segment), int(rng.choice([0, 10_000_000, 20_000_000, 100_000_000, 2_000_000_000]))
    drop(track, FRAME_NS)
    if frame_ns:
        set_to(track, FRAME_NS, frame_ns.to_bytes(8))


def later_from_a_cluster_on(segment, rng):
    found = clusters(segment)
    if len(found) < 2:
        one_cluster_each(segment, rng)
        found = clusters(segment)
    keys = [place for place, cluster in enumerate(found) if place and _begins_with_a_key(cluster)]
    place, by = int(rng.choice(keys)), int(rng.choice([300, 2_000, 40_000]))
    for cluster in found[place:]:
        set_time(cluster, int.from_bytes(cluster.find(CLUSTER_TIME).body) + by)


def again_from_a_cluster_on(segment, rng):
    """The clock starts again."""
    found = clusters(segment)
    keys = [place for place, cluster in enumerate(found) if place and _begins_with_a_key(cluster)]
    if not keys:
        return False
    place = int(rng.choice(keys))
    first = int.from_bytes(found[place].find(CLUSTER_TIME).body)
    for cluster in found[place:]:
        set_time(cluster, int.from_bytes(cluster.find(CLUSTER_TIME).body) - first)
    return None


def _begins_with_a_key(cluster: Element) -> bool:
    block = cluster.find(SIMPLE)
    return block is not None and bool(block.body[3] & 0x80)


def set_time(cluster: Element, time: int) -> None:
    cluster.find(CLUSTER_TIME).body = max(0, time).to_bytes(8)


def cluster_dropped(segment, rng):
    if len(clusters(segment)) < 3:
        one_cluster_each(segment, rng)
    found = clusters(segment)
    gone = found[int(rng.integers(1, len(found)))]
    segment.elements = [one for one in segment.elements if one is not gone]
    return None


def cluster_doubled(segment, rng):
    found = clusters(segment)
    place = next(number for number, one in enumerate(segment.elements) if one is found[rng.integers(len(found))])
    segment.elements.insert(place, segment.elements[place])


def grouped(segment, rng):
    """BlockGroups with durations and references for SimpleBlocks; the last picture may stay."""
    last = None
    for cluster in clusters(segment):
        for place, block in enumerate(cluster.elements):
            if block.kind == SIMPLE and _is_video(segment, block):
                is_key = block.body[3] & 0x80
                body = block.body[:3] + bytes([block.body[3] & 0x0E]) + block.body[4:]
                parts = [Element(BLOCK, body)] + ([] if is_key else [Element(REFERENCE, b"\xd8")])
                last = cluster.elements[place] = Element(GROUP, b"", parts)
    if last is None:
        return False
    last.elements.append(Element(BLOCK_LASTS, int(rng.choice([40, 500, 3_000])).to_bytes(8)))
    return None


def laced(segment, rng):
    """Two frames in one block (EBML or Xiph lacing): the latter has no time of its own."""
    if _video(segment).find(CODEC).body.startswith((b"V_MPEG", b"V_AVC")):
        return False  # pictures that wait for others: times cannot be told from the order of packets
    set_to(_video(segment), LACING, b"\x01")
    count = 0
    for cluster in clusters(segment):
        out: list[Element] = []
        for block in cluster.elements:
            if out and _is_plain(segment, out[-1]) and _is_plain(segment, block) and rng.random() < 0.3:
                first, second = out[-1].body[4:], block.body[4:]
                sizes = bytes([255] * (len(first) // 255) + [len(first) % 255])
                head = out[-1].body[:3] + bytes([out[-1].body[3] | 0x02])
                out[-1] = Element(SIMPLE, head + b"\x01" + sizes + first + second)
                count += 1
            else:
                out.append(block)
        cluster.elements = out
    return None if count else False


def _is_plain(segment: Element, block: Element) -> bool:
    """One picture that depends on others, without laces."""
    return block.kind == SIMPLE and _is_video(segment, block) and not block.body[3] & 0x86


def displayed(segment, rng):
    """Another shape on screen, in pixels or as a ratio."""
    video = _video(segment).find(VIDEO)
    across, down = ((256, 96), (128, 192), (170, 96), (96, 96))[rng.integers(4)]
    set_to(video, DISPLAY_WIDTH, across.to_bytes(2))
    set_to(video, DISPLAY_HEIGHT, down.to_bytes(2))
    set_to(video, DISPLAY_UNIT, bytes([int(rng.choice([0, 0, 3]))]))


def rolled(segment, rng):
    """Turned on screen (a rectangular projection with a roll)."""
    video = _video(segment).find(VIDEO)
    drop(video, PROJECTION)
    degrees = float(rng.choice([90.0, -90.0, 180.0]))
    parts = [Element(PROJECTION_TYPE, b"\0"), Element(ROLL, struct.pack(">d", degrees))]
    video.elements.append(Element(PROJECTION, b"".join(part.as_bytes() for part in parts)))


def other_elements(segment, rng):
    drop(segment, TAGS)
    for place in sorted(rng.integers(0, len(segment.elements) + 1, 4).tolist(), reverse=True):
        segment.elements.insert(place, Element(VOID, bytes(int(rng.integers(0, 300)))))


CHANGES = (
    *(no_index, misplaced_index, one_cluster_each, endless, other_length, other_tick, other_frame_length),
    *(later_from_a_cluster_on, again_from_a_cluster_on, cluster_dropped, cluster_doubled, grouped, laced),
    *(displayed, rolled, other_elements),
)
