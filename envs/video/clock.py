"""When each frame is on screen, and for how long: one clock from what a container says of its packets.

A player's rules: presentation times where they are a container's own; where it only knows decoding times (AVI), a
picture is shown when the decoder gives it out; where the clock starts again (files joined end to end) the film goes on.

Legend: P packets in decoding order · N displayable frames in display order. Ticks are units of the stream's time base.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from envs.video.packets import Packet

ONLY_DECODING_TIMES = ("avi",)  # containers without presentation times; what demuxers make up for them is often wrong
BROADCAST = ("mpegts", "mpeg")  # their clocks may start anywhere: a leap forward is a new start, too
BACKWARD_S = 0.1  # a clock that goes back this far starts again; less is jitter
FORWARD_S = 10.0  # a longer leap of a broadcast clock is no pause (ffmpeg's dts_delta_threshold)
MAX_DURATION_S = 1e6  # eleven days; what claims to be longer has a broken clock
MAX_REORDER = 16  # pictures: no codec holds back more
MAX_PARTS = 256  # files joined in one, with clocks of their own


@dataclass(frozen=True, slots=True)
class Stream:
    """What a container says of a stream beside its packets."""

    container: str  # FFmpeg's name of the format
    may_reorder: bool  # the codec knows pictures that are shown before others which are decoded earlier
    reorder_depth: int  # pictures that its decoder holds back
    tick_s: float
    may_restart: bool  # its times are written with its packets, not in one table
    frame_ticks: float  # usual distance of frames, as declared
    origin: int  # the earliest time in it, ticks: clocks may begin anywhere


@dataclass(frozen=True, slots=True, eq=False)
class Clock:
    """Presentation times on one axis, though there may have been several."""

    origin: int  # of the container's clock, from which ticks are counted
    ticks_P: np.ndarray
    packet_N: np.ndarray  # position of each displayable frame's packet
    is_counted: bool  # which packet gives which frame is known only as they come out of a whole decode
    seams: tuple[int, ...]  # positions where a clock starts again: another file was joined
    end: int  # ticks, when the last frame has been on screen
    decoded: float  # ticks from the first packet's decoding to the end of the last one's

    @property
    def num_parts(self) -> int:
        """1, or of how many files with clocks of their own this one was joined."""
        return len(self.seams) + 1


def read_clock(packets: Sequence[Packet], stream: Stream) -> Clock:
    """The clock of a stream with at least one keyframe."""
    decoding_P = _decoding_times(packets, stream)
    starts = _part_starts(packets, decoding_P, stream)
    is_counted = _is_counted(packets, stream)
    ticks_P, shown_P, end = np.zeros(len(packets), np.int64), np.zeros(len(packets), bool), None
    offset = 0
    for start, stop in zip(starts, [*starts[1:], len(packets)], strict=True):
        part = packets[start:stop]
        ticks = _presentation_times(part, decoding_P[start:stop], stream, is_counted)
        shown = _displayable(part, ticks, is_first=start == 0)
        if shown.any():
            if end is not None and part[0].is_key:
                offset = end - int(ticks[shown].min())
            elif end is not None:
                offset += _offset(packets, decoding_P, start, stream)
            ticks += offset
            end = max(_end(part, ticks, shown, stream), end or 0)
        ticks_P[start:stop], shown_P[start:stop] = ticks, shown
    packet_N = np.flatnonzero(shown_P)
    packet_N = packet_N[np.argsort(ticks_P[packet_N], kind="stable")]
    decoded = decoding_P[-1] + (packets[-1].duration or stream.frame_ticks) - decoding_P[0]
    return Clock(stream.origin, ticks_P, packet_N, is_counted, tuple(starts[1:]), end or 0, decoded)


def decoding_starts(ticks_P: np.ndarray, entry_P: np.ndarray, seams: Sequence[int] = ()) -> np.ndarray:
    """Per packet the last entry that is neither decoded nor displayed after it.

    A frame displayed before the entry it follows in the file (an open group's leading picture) needs the one before.
    Where that lies behind a seam, it refers to pictures that are not there, and comes out as it does in a pass over
    everything only in one.
    """
    starts, entries, entry_times = [], [], []  # those that no later one precedes on screen; their times increase
    first = int(np.argmax(entry_P))
    for position, (ticks, is_entry) in enumerate(zip(ticks_P.tolist(), entry_P.tolist(), strict=True)):
        if is_entry:
            while entry_times and entry_times[-1] >= ticks:
                entries.pop(), entry_times.pop()
            entries.append(position), entry_times.append(ticks)
        fitting = bisect_right(entry_times, ticks)
        starts.append(entries[fitting - 1] if fitting else first if entries else 0)
    starts_P = np.array(starts, dtype=np.int64)
    for seam in seams:
        behind = starts_P[seam:]
        behind[behind < seam] = first
    return starts_P


def _decoding_times(packets: Sequence[Packet], stream: Stream) -> np.ndarray:
    """When each packet is decoded, ticks; where a container does not say, evenly between those of which it does."""
    known = np.array([number for number, packet in enumerate(packets) if packet.dts is not None])
    numbers = np.arange(len(packets))
    if not len(known):
        return numbers * stream.frame_ticks
    times = np.array([packets[number].dts - stream.origin for number in known], dtype=np.float64)
    before, after = np.minimum(numbers - known[0], 0), np.maximum(numbers - known[-1], 0)
    return np.interp(numbers, known, times) + (before + after) * stream.frame_ticks


def _part_starts(packets: Sequence[Packet], decoding_P: np.ndarray, stream: Stream) -> list[int]:
    """Where the clock starts: at 0, and wherever it starts again.

    An entry is shown after everything that is decoded before it, and decoding times only grow: where one of the two
    fails by more than jitter, another file begins.
    """
    times_P = decoding_P if stream.container in ONLY_DECODING_TIMES else _raw_times(packets, decoding_P, stream)
    steps_P = np.diff(decoding_P, prepend=decoding_P[0]) * stream.tick_s
    leaps_P = steps_P < -BACKWARD_S
    if stream.container in BROADCAST:
        leaps_P |= steps_P > FORWARD_S
    is_entry_P = np.array([packet.is_entry for packet in packets])
    starts = [0]
    while stream.may_restart and len(starts) <= MAX_PARTS:
        first = starts[-1]
        latest = np.maximum.accumulate(times_P[first:-1])
        falls = is_entry_P[first + 1 :] & (times_P[first + 1 :] < latest - BACKWARD_S / stream.tick_s)
        found = np.flatnonzero(falls | leaps_P[first + 1 :])
        if not len(found):
            break
        starts.append(first + 1 + int(found[0]))
    return starts


def _offset(packets: Sequence[Packet], decoding_P: np.ndarray, start: int, stream: Stream) -> int:
    """Ticks from the clock of the part that starts here to the one that goes on: decoding goes on without a pause.

    Where a part does not start with a keyframe, pictures of both parts are shown in turns.
    """
    before = start - 1
    goes_on = decoding_P[before] + (packets[before].duration or stream.frame_ticks)
    return round(goes_on - decoding_P[start])


def _raw_times(packets: Sequence[Packet], decoding_P: np.ndarray, stream: Stream) -> np.ndarray:
    """Presentation times as they stand there; decoding times where there are none."""
    pairs = zip(packets, decoding_P.tolist(), strict=True)
    return np.array([time if packet.pts is None else packet.pts - stream.origin for packet, time in pairs])


def _is_counted(packets: Sequence[Packet], stream: Stream) -> bool:
    has_times = stream.container not in ONLY_DECODING_TIMES and all(
        packet.pts is not None for packet in packets if packet.is_shown
    )
    return not has_times and stream.may_reorder and any(packet.order is None for packet in packets if packet.is_shown)


def _presentation_times(part: Sequence[Packet], decoding_P: np.ndarray, stream: Stream, is_counted: bool) -> np.ndarray:
    """Ticks of each packet of a part; of those that are not shown, when they are decoded."""
    ticks_P = np.round(_raw_times(part, decoding_P, stream)).astype(np.int64)
    shown = np.array([number for number, packet in enumerate(part) if packet.is_shown], dtype=np.int64)
    has_times = stream.container not in ONLY_DECODING_TIMES and all(part[number].pts is not None for number in shown)
    order = shown if is_counted else _display_order(part, shown)
    if has_times:
        if order is not None and _is_contradicted(ticks_P[order], stream):
            ticks_P[order] = _in_order([part[number] for number in order], ticks_P[order], stream)
        return ticks_P
    # the decoder gives out its next picture when it is fed, and has been fed some before the first
    slots = np.sort(decoding_P[shown])
    delay = min(stream.reorder_depth, len(slots) - 1) if stream.may_reorder and len(slots) else 0
    usual = float(np.median(np.diff(slots))) if len(slots) > 1 else 0
    late = slots[-1:] + (usual or stream.frame_ticks) * np.arange(1, delay + 1)
    ticks_P[shown if order is None else order] = np.round(np.concatenate([slots[delay:], late])).astype(np.int64)
    return ticks_P


def _is_contradicted(ticks_N: np.ndarray, stream: Stream) -> bool:
    """Whether times go back in the order of display, or leap to another part's."""
    gaps = np.diff(ticks_N)
    return bool((gaps <= 0).any() or (stream.container in BROADCAST and (gaps * stream.tick_s > FORWARD_S).any()))


def _in_order(displayed: Sequence[Packet], ticks_N: np.ndarray, stream: Stream) -> np.ndarray:
    """Times that contradict the order of pictures, mended: what a broadcast does not stamp, demuxers have made up."""
    if stream.container in BROADCAST:
        for number in range(1, len(displayed)):
            if displayed[number].place < 0:
                before = displayed[number - 1]
                ticks_N[number] = ticks_N[number - 1] + round(before.duration or stream.frame_ticks)
    return np.sort(ticks_N)


def _display_order(part: Sequence[Packet], shown: np.ndarray) -> np.ndarray | None:
    """Positions in the order of display, of codecs whose packets tell it."""
    places = [part[number].order for number in shown]
    return None if None in places else shown[np.argsort(np.array(places, dtype=np.int64), kind="stable")]


def _displayable(part: Sequence[Packet], ticks_P: np.ndarray, is_first: bool) -> np.ndarray:
    """Which packets give a frame: none before the film's first keyframe, in the file or on screen. Where a later part
    begins the decoder goes on, and a player shows what it gives."""
    shown_P = np.array([packet.is_shown and not packet.is_discarded for packet in part])
    if not is_first:
        return shown_P
    keys = np.flatnonzero([packet.is_key for packet in part])
    if not len(keys):
        return np.zeros(len(part), dtype=bool)  # nothing to decode them from
    shown_P[: keys[0]] = False
    return shown_P & (ticks_P >= ticks_P[keys[0]])


def _end(part: Sequence[Packet], ticks_P: np.ndarray, shown_P: np.ndarray, stream: Stream) -> int:
    """When the last frame has been on screen for as long as it says, or as long as frames usually are."""
    last = np.flatnonzero(shown_P)[np.argmax(ticks_P[shown_P])]
    stay = part[last].duration
    if not 0 < stay * stream.tick_s <= MAX_DURATION_S:
        gaps = np.diff(np.sort(ticks_P[shown_P]))
        stay = float(np.median(gaps)) if len(gaps) else 0
    return int(ticks_P[last]) + max(round(stay or stream.frame_ticks), 1)


def reorder_depth(ticks_P: np.ndarray) -> int:
    """Of how many pictures before it in the file one is shown before, at most."""
    depth_P = np.zeros(len(ticks_P), dtype=np.int64)
    for distance in range(1, min(MAX_REORDER + 1, len(ticks_P))):
        depth_P[distance:] += ticks_P[:-distance] > ticks_P[distance:]
    return min(int(depth_P.max(initial=0)), MAX_REORDER)
