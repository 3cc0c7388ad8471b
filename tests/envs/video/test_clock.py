"""When frames are on screen: presentation times, decoding times, clocks that start again.

A stream is written as its packets in decoding order: "K0 P3 B1 B2" is a keyframe shown at 0, then pictures shown at 3,
1 and 2. Ticks are tenths of a second; decoding times are 0, 1, 2 ... unless they are given.
"""

from dataclasses import replace

import numpy as np
import pytest

from envs.video.clock import Stream, decoding_starts, read_clock, reorder_depth
from envs.video.packets import Packet

STREAM = Stream(
    container="matroska,webm",
    may_reorder=True,
    reorder_depth=1,
    tick_s=0.1,
    may_restart=True,
    frame_ticks=1.0,
    origin=0,
)


def packets(text, dts=None, timed=True, ordered=True):
    """One packet per word: kind, then its presentation time (or, untimed, its place in display order)."""
    words = text.split()
    decoded = dts or range(len(words))
    return [
        Packet(
            pts=int(word[1:]) if timed else None,
            dts=decoded[number],
            duration=1,
            is_key=word[0] == "K",
            is_discarded=word[0] == "d",
            place=number,
            size=1,
            is_shown=word[0] != "h",
            is_entry=word[0] == "K",
            order=int(word[1:]) if ordered else None,
        )
        for number, word in enumerate(words)
    ]


def shown(found, stream=STREAM):
    """Position of each frame's packet, and ticks from the first frame on."""
    clock = read_clock(found, stream)
    ticks = clock.ticks_P[clock.packet_N]
    return clock.packet_N.tolist(), (ticks - ticks[0]).tolist()


@pytest.mark.parametrize(
    ("text", "positions", "ticks"),
    [
        ("K0 P1 P2", [0, 1, 2], [0, 1, 2]),
        ("K0 P3 B1 B2", [0, 2, 3, 1], [0, 1, 2, 3]),
        ("K5 P6 P9", [0, 1, 2], [0, 1, 4]),  # a gap is a frame that stays
        ("P0 P1 K2 P3", [2, 3], [0, 1]),  # nothing to decode the first ones from
        ("K2 B0 B1 P3", [0, 3], [0, 1]),  # shown before the first keyframe
        ("K0 h1 P1 h3 P2", [0, 2, 4], [0, 1, 2]),  # references that are never shown
        ("d0 d1 K2 P3", [2, 3], [0, 1]),  # an edit list
        ("K0 P1 P1 P2", [0, 1, 2, 3], [0, 1, 1, 2]),  # two at one time: the later is on screen from then on
    ],
)
def test_presentation_times_are_a_containers_own(text, positions, ticks):
    assert shown(packets(text, ordered=False)) == (positions, ticks)


@pytest.mark.parametrize(
    ("text", "dts", "ticks"),
    [
        ("K0 P1 P2 P3", [0, 1, 2, 3], [0, 1, 2, 3]),
        ("K0 P1 P2 P3", [0, 1, 4, 5], [0, 3, 4, 5]),  # two empty chunks: shown when the decoder is fed the next one
        ("K0 P3 B1 B2 P6 B4 B5", [0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6]),
        (
            "K0 P3 B1 B2 P6 B4 B5",
            [0, 3, 4, 5, 6, 7, 8],
            [0, 1, 2, 3, 4, 5, 6],
        ),  # held back at the start
        ("K0 P3 B1 B2 P6 B4 B5", [0, 1, 2, 3, 8, 9, 10], [0, 1, 2, 7, 8, 9, 10]),
    ],
)
def test_where_only_decoding_times_are_known_a_picture_is_shown_as_the_decoder_gives_it_out(text, dts, ticks):
    avi = replace(STREAM, container="avi")
    assert shown(packets(text, dts, timed=False), avi)[1] == ticks


def test_a_codec_that_never_reorders_shows_each_picture_in_its_own_chunk():
    avi = replace(STREAM, container="avi", may_reorder=False)
    assert shown(packets("K0 P1 P2 P3", [0, 1, 4, 5], ordered=False), avi)[1] == [0, 1, 4, 5]


def test_frames_are_counted_only_where_neither_times_nor_order_are_known():
    def is_counted(**given):
        return read_clock(packets("K0 P2 B1", **given), replace(STREAM, container="h264")).is_counted

    assert is_counted(timed=False, ordered=False)
    assert not is_counted(timed=False) and not is_counted(ordered=False)


def test_missing_decoding_times_lie_evenly_between_those_that_are_there():
    found = packets("K0 P1 P2 P3 P4 P5", [10, None, None, 16, None, None], timed=False)
    assert shown(found, replace(STREAM, container="mpegts", may_reorder=False))[1] == [0, 2, 4, 6, 7, 8]


def test_times_that_contradict_the_order_of_pictures_are_given_out_in_that_order():
    found = [replace(packet, pts=number) for number, packet in enumerate(packets("K0 P3 B1 B2"))]
    assert shown(found, replace(STREAM, container="mxf")) == ([0, 2, 3, 1], [0, 1, 2, 3])


# Clocks that start again ----------------------------------------------------------------------------------------------

AGAIN = "K0 P1 P2 P3 P4 P5 K0 P1 P2 P3"


@pytest.mark.parametrize(
    ("text", "container", "ticks"),
    [
        (AGAIN, "matroska,webm", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (AGAIN, "mpegts", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ("K0 P2 B1 P4 B3 K2 P4 B3", "flv", [0, 1, 2, 3, 4, 5, 6, 7]),  # starts again within what has been shown
        ("K0 P1 P2 P3 P4 P0 P1 P2", "flv", [0, 1, 2, 3, 4, 5, 6, 7]),  # not at a keyframe: the decoder goes on
        ("K0 P1 P2 K900 P901", "mpegts", [0, 1, 2, 3, 4]),  # a broadcast's clock starts anywhere
        ("K0 P1 P2 K900 P901", "matroska,webm", [0, 1, 2, 900, 901]),  # elsewhere a frame that stays
        ("K0 P1 P2 K50 P51", "mpegts", [0, 1, 2, 50, 51]),  # and so are five seconds of a broadcast
        ("K0 P1 P2 K3 P4 K0 P1 P2 K0", "mpegts", [0, 1, 2, 3, 4, 5, 6, 7, 8]),
    ],
)
def test_where_a_clock_starts_again_the_film_goes_on(text, container, ticks):
    found = packets(text)
    found = [replace(packet, dts=packet.pts, order=None) for packet in found] if "B" not in text else found
    assert shown(found, replace(STREAM, container=container))[1] == ticks


def test_parts_are_counted_and_a_table_of_times_has_one():
    found = [replace(packet, dts=packet.pts) for packet in packets(AGAIN)]
    assert read_clock(found, STREAM).num_parts == 2
    assert read_clock(found, replace(STREAM, may_restart=False)).num_parts == 1


def test_pictures_of_both_parts_are_shown_in_turns_where_a_broadcast_is_spliced_between_them():
    """The seam lies between a picture and those that are shown before it."""
    found = packets("K0 P3 B1 B2 P6 B4 B5")
    moved = [replace(packet, pts=packet.pts - 50, dts=packet.dts - 50) for packet in found[5:]]
    assert shown([*found[:5], *moved], replace(STREAM, container="mpegts", origin=-50))[1] == [0, 1, 2, 3, 4, 5, 6]


def test_what_a_demuxer_made_up_from_the_time_behind_a_splice_is_not_believed():
    """Of a picture that no packet of the broadcast stamps, it takes the next one's decoding time."""
    found = [replace(packet, dts=packet.pts) for packet in packets("K0 P1 P2 P3 P904 P905")]
    made_up = replace(found[3], pts=904, place=-1)
    assert shown([*found[:3], made_up, *found[4:]], replace(STREAM, container="mpeg"))[1] == [0, 1, 2, 3, 4, 5]


# Where decoding begins ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ticks", "entries", "starts"),
    [
        ([0, 1, 2, 3], [1, 0, 1, 0], [0, 0, 2, 2]),
        ([0, 3, 1, 2, 6, 4, 5], [1, 0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 4, 0, 0]),  # leading pictures need the group before
        ([2, 0, 1], [1, 0, 0], [0, 0, 0]),
        ([0, 1], [0, 0], [0, 0]),
    ],
)
def test_a_frame_is_decoded_from_the_last_entry_before_it_in_the_file_and_on_screen(ticks, entries, starts):
    assert decoding_starts(np.array(ticks), np.array(entries, dtype=bool)).tolist() == starts


def test_what_lies_behind_a_seam_and_before_an_entry_is_decoded_from_the_start():
    ticks, entries = np.arange(9), np.isin(np.arange(9), (0, 2, 6))
    assert decoding_starts(ticks, entries, seams=(4,)).tolist() == [0, 0, 2, 2, 0, 0, 6, 6, 6]
    assert decoding_starts(ticks, entries, seams=(6,)).tolist() == [0, 0, 2, 2, 2, 2, 6, 6, 6]


@pytest.mark.parametrize(
    ("ticks", "depth"), [([0, 1, 2], 0), ([0, 3, 1, 2], 1), ([0, 4, 2, 1, 3], 2), ([5, 4, 3, 2, 1, 0], 5), ([0], 0)]
)
def test_the_reorder_depth_is_how_many_pictures_wait_for_one(ticks, depth):
    assert reorder_depth(np.array(ticks)) == depth
