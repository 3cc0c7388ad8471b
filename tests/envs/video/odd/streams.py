"""Sound files of the older containers that say unusual things: AVI, GIF, transport and program streams, FLV, Ogg; and
files of any kind joined end to end."""

from __future__ import annotations

import struct
import zlib
from itertools import pairwise

import numpy as np

from tests.envs.video.odd.clocks import seams

TS = 188
VOP = b"\0\0\1\xb6"  # begin of an MPEG-4 picture


# AVI ------------------------------------------------------------------------------------------------------------------


def avi_empty_chunks(content: bytes, suffix: str, rng: np.random.Generator) -> bytes | None:
    """Chunks without content: the picture before stays. Listed in the index or, at times, without any index."""
    start, end = _movi(content)
    share, out = float(rng.choice([0.05, 0.15, 0.4])), []
    for kind, body in _chunks(content, start, end):
        out.append((kind, body))
        if kind[2:] in (b"dc", b"db") and rng.random() < share:
            out += [(kind, b"")] * int(rng.choice([1, 1, 3]))
    return _avi(content, start, out, has_index=rng.random() < 0.7)


def avi_no_index(content: bytes, suffix: str, rng: np.random.Generator) -> bytes | None:
    start, end = _movi(content)
    return _avi(content, start, list(_chunks(content, start, end)), has_index=False)


def avi_rate(content: bytes, suffix: str, rng: np.random.Generator) -> bytes | None:
    """Scale and rate of the stream in other words, or other ones."""
    out, place = bytearray(content), content.find(b"vids")
    scale, rate = ((1, 25), (1001, 24_000), (40_000, 1_000_000), (1, 10), (2, 15), (1001, 30_000))[rng.integers(6)]
    struct.pack_into("<II", out, place + 20, scale, rate)
    struct.pack_into("<I", out, content.find(b"avih") + 8, round(1e6 * scale / rate))
    return bytes(out)


def avi_length(content: bytes, suffix: str, rng: np.random.Generator) -> bytes | None:
    """Declared numbers of frames: none, or up to twice as many as there are."""
    out, place = bytearray(content), content.find(b"vids")
    length = round(struct.unpack_from("<I", content, place + 32)[0] * float(rng.choice([0, 0.5, 1.05, 2.0])))
    struct.pack_into("<I", out, place + 32, length)
    if rng.random() < 0.5:
        struct.pack_into("<I", out, content.find(b"avih") + 24, length)
    return bytes(out)


def avi_start(content: bytes, suffix: str, rng: np.random.Generator) -> bytes | None:
    """The stream begins later than the file."""
    out, place = bytearray(content), content.find(b"vids")
    struct.pack_into("<I", out, place + 28, int(rng.integers(1, 40)))
    return bytes(out)


def avi_dropped(content: bytes, suffix: str, rng: np.random.Generator) -> bytes | None:
    """Chunks are missing, as captures lose them; the index agrees."""
    start, end = _movi(content)
    kept = [one for number, one in enumerate(_chunks(content, start, end)) if number < 2 or rng.random() > 0.06]
    return _avi(content, start, kept, has_index=True)


def avi_packed(content: bytes, suffix: str, rng: np.random.Generator) -> bytes | None:
    """DivX's packed pictures: one that others wait for and the first of those in one chunk, then a placeholder."""
    start, end = _movi(content)
    chunks = list(_chunks(content, start, end))
    places = [number for number, (_, body) in enumerate(chunks) if _vop_type(body) is not None]
    types = {place: _vop_type(chunks[place][1]) for place in places}
    pairs = [(one, other) for one, other in pairwise(places) if types[one] != 2 and types[other] == 2]
    if not pairs:
        return None
    kind, first = chunks[places[0]]
    chunks[places[0]] = kind, first[: first.find(VOP)] + b"\0\0\1\xb2DivX503b1393p" + first[first.find(VOP) :]
    out, held = [], {}
    for one, other in pairs:
        held[one] = chunks[one][1] + chunks[other][1][chunks[other][1].find(VOP) :]
        behind = other  # the placeholder follows the last picture that is shown before
        while types.get(behind + 1) == 2:
            behind += 1
        held[other] = None
        held.setdefault(("after", behind), b"\0\0\1\xb6\x58\x25\x7f")
    for number, (kind, body) in enumerate(chunks):
        if held.get(number, body) is not None:
            out.append((kind, held.get(number, body)))
        if ("after", number) in held:
            out.append((kind, held["after", number]))
    return _avi(content, start, out, has_index=True)


def _vop_type(body: bytes) -> int | None:
    """Of an MPEG-4 picture: 0 by itself, 1 from one before, 2 from one before and one behind."""
    place = body.find(VOP)
    return None if place < 0 else body[place + 4] >> 6


def _movi(content: bytes) -> tuple[int, int]:
    """Where the chunks begin and end."""
    place = content.find(b"movi")
    return place + 4, place + struct.unpack_from("<I", content, place - 4)[0]


def _chunks(content: bytes, place: int, end: int):
    while place + 8 <= end:
        kind, size = struct.unpack_from("<4sI", content, place)
        yield kind, content[place + 8 : place + 8 + size]
        place += 8 + size + size % 2


def _avi(content: bytes, start: int, chunks, *, has_index: bool) -> bytes:
    body, index = b"movi", b""
    for kind, one in chunks:
        index += struct.pack("<4sIII", kind, 0x10 if _is_key(one, index) else 0, len(body), len(one))
        body += struct.pack("<4sI", kind, len(one)) + one + bytes(len(one) % 2)
    out = content[: start - 8] + struct.pack("<I", len(body)) + body
    if has_index:
        out += struct.pack("<4sI", b"idx1", len(index)) + index
    return out[:4] + struct.pack("<I", len(out) - 8) + out[8:]


def _is_key(one: bytes, index: bytes) -> bool:
    """The first picture, JPEGs, and MPEG-4 pictures that are coded by themselves."""
    return not index or one[:2] == b"\xff\xd8" or _vop_type(one) == 0


# GIF ------------------------------------------------------------------------------------------------------------------


def gif_delays(content: bytes, suffix: str, rng: np.random.Generator) -> bytes | None:
    """Any delay for any picture, 0 and 1 (which players read as a tenth) among them; the last may stay."""
    out = bytearray(content)
    places = _controls(content)
    for place in places:
        struct.pack_into("<H", out, place + 4, int(rng.choice([0, 1, 2, 3, 4, 10, 10, 33, 100])))
    if places and rng.random() < 0.5:
        struct.pack_into("<H", out, places[-1] + 4, int(rng.choice([100, 300, 1000])))
    return bytes(out)


def gif_disposal(content: bytes, suffix: str, rng: np.random.Generator) -> bytes | None:
    """What becomes of a picture when its time is over: it stays, gives way to the background or to what was there."""
    out = bytearray(content)
    for place in _controls(content):
        out[place + 3] = out[place + 3] & 0xE3 | int(rng.integers(0, 4)) << 2
    return bytes(out)


def gif_no_controls(content: bytes, suffix: str, rng: np.random.Generator) -> bytes | None:
    """Pictures without delays."""
    for place in reversed(_controls(content)):
        if rng.random() < 0.4:
            content = content[:place] + content[place + 8 :]
    return content


def gif_no_end(content: bytes, suffix: str, rng: np.random.Generator) -> bytes | None:
    return content.rstrip(b";")


def gif_comment(content: bytes, suffix: str, rng: np.random.Generator) -> bytes | None:
    place = int(rng.choice(_controls(content)))
    return content[:place] + b"\x21\xfe\x05hello\x00" + content[place:]


def _controls(content: bytes) -> list[int]:
    found, place = [], content.find(b"\x21\xf9\x04")
    while place >= 0:
        if content[place + 7 : place + 8] == b"\0" and content[place + 8 : place + 9] in (b",", b"!"):
            found.append(place)
        place = content.find(b"\x21\xf9\x04", place + 1)
    return found


# APNG -----------------------------------------------------------------------------------------------------------------


def apng_controls(content: bytes, suffix: str, rng: np.random.Generator) -> bytes | None:
    """Any delay, in any unit, and what becomes of a picture when its time is over."""
    out, place = content[:8], 8
    while place + 12 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, place)
        body = content[place + 8 : place + 8 + size]
        if kind == b"fcTL":
            delay = struct.pack(">HH", int(rng.choice([1, 2, 10, 100])), int(rng.choice([0, 10, 25, 30, 100])))
            body = body[:20] + delay + bytes([int(rng.integers(0, 2))]) + body[25:]
        out += struct.pack(">I4s", size, kind) + body + struct.pack(">I", zlib.crc32(kind + body))
        place += 12 + size
    return out


# MPEG transport and program streams -----------------------------------------------------------------------------------


def ts_packets_lost(content: bytes, suffix: str, rng: np.random.Generator) -> bytes | None:
    """A few transport packets are missing: continuity counters jump, pictures are damaged."""
    packets = _ts(content)
    return b"".join(one for number, one in enumerate(packets) if number < 4 or rng.random() > 0.01)


def ts_discontinuity_told(content: bytes, suffix: str, rng: np.random.Generator) -> bytes | None:
    """The flag that says that the clock may jump here, where it does not."""
    out = []
    for packet in _ts(content):
        if packet[3] & 0x20 and packet[4] and rng.random() < 0.3:
            packet = packet[:5] + bytes([packet[5] | 0x80]) + packet[6:]
        out.append(packet)
    return b"".join(out)


def ts_null_packets(content: bytes, suffix: str, rng: np.random.Generator) -> bytes | None:
    null, out = b"\x47\x1f\xff\x10" + b"\xff" * (TS - 4), []
    for packet in _ts(content):
        out += [packet] + [null] * int(rng.random() < 0.2)
    return b"".join(out)


def ts_noise_before(content: bytes, suffix: str, rng: np.random.Generator) -> bytes | None:
    return rng.bytes(int(rng.integers(1, 400))).replace(b"\x47", b"\x46") + content


def ts_large_packets(content: bytes, suffix: str, rng: np.random.Generator) -> bytes | None:
    """192 bytes each, as discs have them, or 204."""
    if rng.random() < 0.5:
        return b"".join(bytes(4) + packet for packet in _ts(content))
    return b"".join(packet + b"\xff" * 16 for packet in _ts(content))


def pes_without_times(content: bytes, suffix: str, rng: np.random.Generator) -> bytes | None:
    """Some pictures carry no times; those of the neighbours must do."""
    out, place, share, first = bytearray(content), 0, float(rng.choice([0.2, 0.6, 0.95])), True
    while (place := content.find(b"\0\0\1\xe0", place)) >= 0:
        if content[place + 6] >> 6 == 2 and content[place + 7] >> 6:
            if not first and rng.random() < share:
                out[place + 7] &= 0x3F
                count = 5 if content[place + 7] >> 6 == 2 else 10
                out[place + 9 : place + 9 + count] = b"\xff" * count
            first = False
        place += 4
    return bytes(out)


def pes_times_moved(content: bytes, suffix: str, rng: np.random.Generator) -> bytes | None:
    """From some picture on the clock is another one: later, earlier, or past the end of its 33 bits."""
    places, place = [], 0
    while (place := content.find(b"\0\0\1\xe0", place)) >= 0:
        if content[place + 6] >> 6 == 2 and content[place + 7] >> 6:
            places.append(place)
        place += 4
    start = int(rng.choice(seams([_time(content, place + 9) for place in places])))
    out, by_s = bytearray(content), float(rng.choice([0.3, 2.0, 15.0, -0.5, -1.0, -20.0, 95_443.0]))
    for place in places[start:]:
        for number in range(1 if content[place + 7] >> 6 == 2 else 2):
            _move_time(out, place + 9 + 5 * number, round(by_s * 90_000))
    return bytes(out)


def _time(content: bytes, place: int) -> int:
    old = content[place : place + 5]
    return (old[0] >> 1 & 7) << 30 | old[1] << 22 | old[2] >> 1 << 15 | old[3] << 7 | old[4] >> 1


def _move_time(out: bytearray, place: int, by: int) -> None:
    old, time = out[place : place + 5], (_time(out, place) + by) % 2**33
    marks = (old[0] & 0xF1 | (time >> 30) << 1, time >> 22 & 0xFF, (time >> 15 & 0x7F) << 1 | 1)
    out[place : place + 5] = bytes([*marks, time >> 7 & 0xFF, (time & 0x7F) << 1 | 1])


def _ts(content: bytes) -> list[bytes]:
    return [content[place : place + TS] for place in range(0, len(content) - TS + 1, TS)]


# FLV ------------------------------------------------------------------------------------------------------------------


def flv_no_metadata(content: bytes, suffix: str, rng: np.random.Generator) -> bytes | None:
    return _flv(content, [tag for tag in _tags(content) if tag[0] != 18])


def flv_moved(content: bytes, suffix: str, rng: np.random.Generator) -> bytes | None:
    """From some keyframe on the clock is another one: later, earlier, or from zero again."""
    tags = list(_tags(content))
    keys = [number for number, (kind, _, body) in enumerate(tags) if kind == 9 and body[0] >> 4 == 1 and number > 4]
    start = int(rng.choice(keys))
    by = max(int(rng.choice([300, 5_000, 20_000_000, -400, -(10**9)])), -tags[start][1])
    later = [(kind, max(0, time + by), body) for kind, time, body in tags[start:]]
    return _flv(content, tags[:start] + later)


def flv_declared_length(content: bytes, suffix: str, rng: np.random.Generator) -> bytes | None:
    place = content.find(b"\0\x08duration\0")
    if place < 0:
        return None
    length = struct.pack(">d", float(rng.choice([0.0, 0.7, 1.5, 3.0, 1000.0])))
    return content[: place + 11] + length + content[place + 19 :]


def _tags(content: bytes):
    place = 13
    while place + 11 <= len(content):
        size = int.from_bytes(content[place + 1 : place + 4])
        time = int.from_bytes(content[place + 4 : place + 7]) | content[place + 7] << 24
        yield content[place], time, content[place + 11 : place + 11 + size]
        place += 11 + size + 4


def _flv(content: bytes, tags) -> bytes:
    out = content[:13]
    for kind, time, body in tags:
        head = bytes([kind]) + len(body).to_bytes(3) + (time & 0xFFFFFF).to_bytes(3) + bytes([time >> 24 & 0xFF])
        out += head + bytes(3) + body + (len(body) + 11).to_bytes(4)
    return out


# Any ------------------------------------------------------------------------------------------------------------------


def joined(content: bytes, suffix: str, rng: np.random.Generator) -> bytes | None:
    """The same file twice, end to end."""
    return content + content


def cut_off(content: bytes, suffix: str, rng: np.random.Generator) -> bytes | None:
    """A download that ended early."""
    return content[: round(len(content) * rng.uniform(0.3, 0.99))]


def garbage_behind(content: bytes, suffix: str, rng: np.random.Generator) -> bytes | None:
    return content + rng.bytes(int(rng.integers(1, 2000)))


CHANGES = {
    "avi": (avi_empty_chunks, avi_packed, avi_no_index, avi_rate, avi_length, avi_start, avi_dropped),
    "apng": (apng_controls,),
    "gif": (gif_delays, gif_disposal, gif_no_controls, gif_no_end, gif_comment),
    "ts": (
        *(ts_packets_lost, ts_discontinuity_told, ts_null_packets, ts_noise_before, ts_large_packets),
        *(pes_without_times, pes_times_moved),
    ),
    "vob": (pes_without_times, pes_times_moved),
    "flv": (flv_no_metadata, flv_moved, flv_declared_length),
}
EVERYWHERE = (joined, cut_off, garbage_behind)
