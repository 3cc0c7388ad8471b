"""Sound clips whose packets keep another time: shifted, torn apart, slowed down, thinned out, doubled, without times.

Packets are copied by PyAV into a container of the same kind. Times are in seconds where a name says so, in ticks of
the stream otherwise.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace

import av
import numpy as np

FORMATS = {"m4v": "m4v", "mkv": "matroska", "mpg": "mpeg", "ts": "mpegts", "wmv": "asf", "ogv": "ogg", "m2v": None}
EXACT = {"fflags": "bitexact"}  # no dates and no random numbers in what is written
WRAP_33 = 2**33 / 90_000  # seconds after which a transport stream's clock begins anew


@dataclass(frozen=True, slots=True)
class Copy:
    """A packet to be written; times in ticks."""

    data: bytes
    pts: int | None
    dts: int | None
    duration: int
    is_key: bool


Change = Callable[[list[Copy], float, np.random.Generator], list[Copy]]  # packets, ticks of a second


def changed(change: Change, options: dict[str, str] | None = None, to: str | None = None):
    """A mutation of a file that changes its packets; None where the container does not take the result."""

    def mutation(content: bytes, suffix: str, rng: np.random.Generator) -> bytes | None:
        return remuxed(content, suffix, rng, change, options or {}, to or suffix)

    return mutation


def remuxed(content, suffix, rng, change: Change, options: dict[str, str], to: str) -> bytes | None:
    target = io.BytesIO()
    form = FORMATS.get(to, to)
    if form is None:
        return None
    with av.open(io.BytesIO(content)) as old, av.open(target, "w", format=form, options=options | EXACT) as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        packets = [
            Copy(bytes(packet), packet.pts, packet.dts, packet.duration or 0, packet.is_keyframe)
            for packet in old.demux(stream)
            if packet.size
        ]
        for step in change(packets, float(1 / stream.time_base), rng):
            new.mux(_packet(step, stream.time_base, copy))
    return target.getvalue()


def _packet(step: Copy, time_base, stream) -> av.Packet:
    packet = av.Packet(step.data)
    packet.pts, packet.dts, packet.duration = step.pts, step.dts, step.duration
    packet.time_base, packet.is_keyframe, packet.stream = time_base, step.is_key, stream
    return packet


def _moved(step: Copy, by: int) -> Copy:
    pts, dts = (None if time is None else time + by for time in (step.pts, step.dts))
    return replace(step, pts=pts, dts=dts)


def seams(pts: list[int]) -> list[int]:
    """Places between packets at which nothing that comes later is shown earlier."""
    latest, soonest = np.maximum.accumulate(pts), np.minimum.accumulate(pts[::-1])[::-1]
    return [place for place in range(1, len(pts)) if latest[place - 1] < soonest[place]]


def unchanged(packets, second, rng):
    return packets


def shifted(packets, second, rng):
    by = round(float(rng.choice([0.5, 3.0, 47.3, 4000.0])) * second)
    return [_moved(step, by) for step in packets]


def shifted_below_zero(packets, second, rng):
    return [_moved(step, -round(0.2 * second)) for step in packets]


def wrapped(packets, second, rng):
    by = round((WRAP_33 - rng.uniform(0.2, 1.2)) * second)
    return [_moved(step, by) for step in packets]


def gap(packets, second, rng):
    """Some time between two packets in which nothing new is shown."""
    place = int(rng.choice(seams([step.pts for step in packets])))
    by = round(float(rng.choice([0.1, 0.4, 2.0, 9.0])) * second)
    return [_moved(step, by if number >= place else 0) for number, step in enumerate(packets)]


def slower(packets, second, rng):
    factor = float(rng.choice([0.5, 1.5, 3.0, 10.0]))
    scaled = lambda time: None if time is None else round(time * factor)  # noqa: E731
    return [
        replace(step, pts=scaled(step.pts), dts=scaled(step.dts), duration=round(step.duration * factor))
        for step in packets
    ]


def uneven(packets, second, rng):
    """Variable rate: every packet some time later than before, in the order of display."""
    pts = sorted(step.pts for step in packets)
    at = dict(zip(pts, np.cumsum(rng.integers(1, round(0.2 * second) + 2, len(pts))).tolist(), strict=True))
    dts = sorted(at.values())
    back = max(dts[number] - at[step.pts] for number, step in enumerate(packets))
    moved = [replace(step, pts=at[step.pts] + back, dts=dts[number], duration=0) for number, step in enumerate(packets)]
    return moved


def last_stays(packets, second, rng):
    last = max(range(len(packets)), key=lambda number: packets[number].pts)
    longer = replace(packets[last], duration=round(rng.uniform(0.2, 3.0) * second))
    return [*packets[:last], longer, *packets[last + 1 :]]


def no_durations(packets, second, rng):
    return [replace(step, duration=0) for step in packets]


def wrong_durations(packets, second, rng):
    return [replace(step, duration=int(rng.integers(1, round(0.3 * second) + 2))) for step in packets]


def dropped(packets, second, rng):
    """A run of packets is missing, as after a lossy link."""
    start, count = int(rng.integers(1, len(packets))), int(rng.integers(1, 6))
    return packets[:start] + packets[start + count :]


def thinned(packets, second, rng):
    """Single packets are missing."""
    return [step for number, step in enumerate(packets) if not number or rng.random() > 0.08]


def begins_late(packets, second, rng):
    """Cut without regard to keyframes: the first pictures have nothing to be decoded from."""
    return packets[int(rng.integers(1, 8)) :]


def doubled(packets, second, rng):
    """Single packets come twice, a tick apart."""
    out = []
    for step in packets:
        out.append(step)
        if step.is_key and rng.random() < 0.3:
            out.append(_moved(step, 1))
    return out


def ended_early(packets, second, rng):
    return packets[: int(rng.integers(2, len(packets)))]


def empty_packets(packets, second, rng):
    """Packets without content between the others, as encoders write for a picture that did not change."""
    out, late = [], 0
    step_ticks = round(0.04 * second)
    for step in packets:
        out.append(_moved(step, late))
        if rng.random() < 0.15:
            late += step_ticks
            out.append(Copy(b"", out[-1].pts + step_ticks, out[-1].dts + step_ticks, step_ticks, False))
    return out


def keys_untold(packets, second, rng):
    """Only the first packet is said to be a keyframe."""
    return [replace(step, is_key=not number) for number, step in enumerate(packets)]


def keys_overtold(packets, second, rng):
    """Packets that depend on others are said to be keyframes."""
    return [replace(step, is_key=step.is_key or rng.random() < 0.3) for step in packets]


CHANGES = (
    *(unchanged, shifted, shifted_below_zero, gap, gap, slower, uneven, last_stays, no_durations),
    *(wrong_durations, dropped, thinned, begins_late, doubled, ended_early, keys_untold, keys_overtold),
)
