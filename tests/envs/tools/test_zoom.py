"""The second tool: its grammar, and the region it shows."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from envs.tools.rules import RetrievalRules
from envs.tools.zoom import Zoom, read_zoom, render_zoom
from rl.trajectory import MalformedCall, RefusedCall, ToolCall
from tests.hostile_text import ODD, WORDS

NUMBERS = st.floats(-2000, 2000, allow_nan=False).map(lambda value: round(value, 2))
BOXES = st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS)


@dataclass(frozen=True)
class Clip:
    """Of 640 x 360 pixels."""

    duration_s: float = 8.0
    height: int = 360
    width: int = 640


def parse(text, clip=Clip()):
    return Zoom(RetrievalRules()).parse(text, clip)


@pytest.mark.parametrize(
    "written",
    [
        "<zoom>3.5</zoom><box>100 200 300 400</box>",
        "Look.<zoom> 3.50 </zoom> <box>100, 200, 300, 400</box>",
        "<zoom>1</zoom><box>1 2</box> no: <zoom>3.5</zoom>\n<box>[100,200,300,400]</box>",
        "<zoom>3.5</zoom><box>(100.0 200.00,300 ,400)</box>",
    ],
)
def test_the_last_request_counts_however_its_numbers_are_parted(written):
    call = parse(written)
    assert (call.tool, call.arguments["time_s"], call.box, call.clamped) == ("zoom", 3.5, (100, 200, 300, 400), ())


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("<box>1 2 3 4</box>", "no moment before the box"),
        ("<zoom>3<box>1 2 3 4</box>", "the moment is not closed"),
        ("<zoom>3</zoom>1 2 3 4</box>", "no box right after the moment"),
        ("<zoom>3</zoom> and <box>1 2 3 4</box>", "no box right after the moment"),
        ("<zoom>soon</zoom><box>1 2 3 4</box>", "the moment is not a number of seconds"),
        ("<zoom>3</zoom><box>1 2 3</box>", "the box is not four numbers, left top right bottom"),
        ("<zoom>3</zoom><box>1 2 3 4 5</box>", "the box is not four numbers, left top right bottom"),
        ("<zoom>3</zoom><box>1 2 3 x</box>", "the box is not four numbers, left top right bottom"),
        ("<zoom>3</zoom><box>nan 2 3 4</box>", "the box is not four numbers, left top right bottom"),
    ],
)
def test_what_cannot_be_read_is_malformed_for_a_named_reason(written, reason):
    assert parse(written) == MalformedCall(reason, "zoom")


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("<zoom>8.01</zoom><box>0 0 500 500</box>", "the moment lies outside the video"),
        ("<zoom>-1</zoom><box>0 0 500 500</box>", "the moment lies outside the video"),
        ("<zoom>3</zoom><box>500 0 100 500</box>", "the box is reversed or empty"),
        ("<zoom>3</zoom><box>100 300 500 300</box>", "the box is reversed or empty"),
        ("<zoom>3</zoom><box>1200 0 1500 500</box>", "the box lies outside the frame"),
        ("<zoom>3</zoom><box>100 100 101 500</box>", "the box is smaller than 4 x 4 pixels of the video"),
        ("<zoom>3</zoom><box>0 100 1000 120</box>", "the box is a line, not a region"),
    ],
)
def test_what_cannot_be_shown_is_refused_for_a_named_reason(written, reason):
    assert parse(written) == RefusedCall(reason, "zoom")


def test_a_box_beyond_the_frame_is_cut_off_at_its_border_and_both_are_told():
    call = parse("<zoom>3</zoom><box>-50 100 400 1200</box>")
    assert (call.box, call.asked_box, call.clamped) == ((0, 100, 400, 1000), (-50, 100, 400, 1200), ("box",))


@given(st.floats(0, 8).map(lambda time: round(time, 2)), BOXES)
def test_what_is_rendered_is_read_back(time_s, box):
    assert read_zoom(render_zoom(time_s, box)) == (time_s, pytest.approx(box, rel=1e-5))


@given(st.floats(-1, 9), BOXES)
def test_a_granted_box_lies_in_the_frame_and_is_no_larger_than_the_asked_one(time_s, box):
    call = parse(render_zoom(time_s, box))
    if isinstance(call, ToolCall):
        left, top, right, bottom = call.box
        assert 0 <= left < right <= 1000 and 0 <= top < bottom <= 1000
        assert 0 <= call.arguments["time_s"] <= 8.0
        assert (right - left) * 0.64 >= 4 - 1e-9 and (bottom - top) * 0.36 >= 4 - 1e-9


@given(st.text(alphabet="0123456789 .,-[]()<>/zoombx\n", max_size=60) | st.text(max_size=40))
@example("9" * 100_000)
@example("-" * 100_000)
@example(" " * 100_000)
@example("1 " * 50_000)
def test_no_text_makes_it_raise(text):
    for written in (text, f"<zoom>{text}</zoom><box>1 2 3 4</box>", f"<zoom>1</zoom><box>{text}</box>"):
        assert isinstance(parse(written), ToolCall | MalformedCall | RefusedCall)


@pytest.mark.parametrize("edge", (*WORDS, *ODD), ids=ascii)
def test_odd_texts_are_malformed(edge):
    call = parse(f"<zoom>{edge}</zoom><box>{edge}</box>")
    assert isinstance(call, MalformedCall)


def test_the_region_is_cut_out_of_the_clips_own_pixels_and_enlarged(episodes):
    env = episodes.env()
    seen = env.step(episodes.said("<zoom>5</zoom><box>250 250 750 750</box>"))
    picture_HWC = np.asarray(seen.frames.pixels_THWC[0]).astype(float)
    assert picture_HWC.shape == (112, 112, 3)  # zoom_max_pixels, though the region is of 56 x 56
    assert picture_HWC[:50, :50].mean() == pytest.approx(230, abs=4)
    assert picture_HWC[62:].mean() == pytest.approx(40, abs=4) and picture_HWC[:, 62:].mean() == pytest.approx(
        40, abs=4
    )


def test_an_image_is_one_scene_of_repeated_frames_at_the_moment_on_screen(episodes):
    env = episodes.env()
    seen = env.step(episodes.said("<zoom>5.04</zoom><box>0 0 500 500</box>"))
    count = episodes.processor.image_frames
    assert seen.frames.scene_lengths == (count,)
    assert seen.frames.timestamps_s_T == pytest.approx((5.0,) * count)
    assert all(np.array_equal(seen.frames.pixels_THWC[0], frame) for frame in seen.frames.pixels_THWC)


@pytest.mark.parametrize("box", ["0 0 1000 1000", "100 100 200 200", "0 0 1000 400", "400 0 500 900"])
def test_an_image_costs_about_the_same_whatever_region_it_shows(episodes, box):
    env = episodes.env()
    seen = env.step(episodes.said(f"<zoom>5</zoom><box>{box}</box>"))
    area = seen.frames.height * seen.frames.width
    assert 0.4 * 12544 <= area <= 12544


@pytest.mark.parametrize("time_s", ["0", "8", "7.99"])
def test_the_clips_first_and_last_moments_can_be_shown(episodes, time_s):
    assert episodes.env().step(episodes.said(f"<zoom>{time_s}</zoom><box>0 0 500 500</box>")).frames is not None
