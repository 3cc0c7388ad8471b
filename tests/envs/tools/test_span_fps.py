"""The retrieval grammar, sentence by sentence."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.tools.rules import RetrievalRules
from envs.tools.span_fps import frame_times, parse_call, render_call
from rl.trajectory import MalformedCall, RefusedCall, RetrievalCall, TimeSpan
from tests.calibration import within

RULES = RetrievalRules(max_calls=1, min_window_s=0.1, max_fps=10.0, max_frames=32, max_pixels=100_000)


def read(text, *, duration_s=60.0, native_fps=30.0, rules=RULES, max_frames=None):
    return parse_call(text, duration_s=duration_s, native_fps=native_fps, rules=rules, max_frames=max_frames)


def test_a_well_formed_call_is_granted_as_asked():
    call = read("I should look closer. <span>56.47 - 59.47</span><fps>3</fps>")
    assert call == RetrievalCall(TimeSpan(56.47, 59.47), 3.0, TimeSpan(56.47, 59.47), 3.0, 9, ())


def test_text_that_does_not_end_in_a_frame_rate_asks_nothing():
    assert read("<think>no</think><answer>B</answer>") is None
    assert read("<span>1 - 2</span><fps>3</fps> and on") is None
    assert read("") is None


def test_only_the_text_since_the_last_span_counts():
    assert read("<span>x</span> again <span>1 - 2</span><fps>2</fps>").span == TimeSpan(1.0, 2.0)
    assert isinstance(read("<span>1 - 2</span> again <span>x</span><fps>2</fps>"), MalformedCall)


@pytest.mark.parametrize(
    "text",
    [
        "<span>1 - 2</span><fps>2</fps>",
        "<span>1-2</span><fps>2</fps>",
        "<span> 1.0 -2. </span> \n <fps> 2.00 </fps>",
        "<span>01 - 02.000</span>\t<fps>2.001</fps>",
    ],
)
def test_blanks_and_decimals_may_be_written_in_several_ways(text):
    call = read(text)
    assert (call.span, call.fps, call.num_frames) == (TimeSpan(1.0, 2.0), 2.0, 2)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<fps>2</fps>", "no time span"),
        ("1 - 2</span><fps>2</fps>", "no time span"),
        ("<span>1 - 2<fps>2</fps>", "not closed"),
        ("<span>1 - 2</span>2</fps>", "no frame rate right after"),
        ("<span>1 - 2</span> at <fps>2</fps>", "no frame rate right after"),
        ("<span>one - two</span><fps>2</fps>", "not two numbers"),
        ("<span>nan - inf</span><fps>2</fps>", "not two numbers"),
        ("<span>1e0 - 2e0</span><fps>2</fps>", "not two numbers"),
        ("<span>1</span><fps>2</fps>", "not two numbers"),
        ("<span>1 - 2 - 3</span><fps>2</fps>", "not two numbers"),
        ("<span>١ - ٢</span><fps>2</fps>", "not two numbers"),
        ("<span></span><fps>2</fps>", "not two numbers"),
        ("<span>1 - 2</span><fps>fast</fps>", "not a number"),
        ("<span>1 - 2</span><fps></fps>", "not a number"),
        ("<span>1 - 2</span><fps>2</fps></fps>", "not a number"),
    ],
)
def test_a_malformed_call_says_what_could_not_be_read(text, reason):
    call = read(text)
    assert isinstance(call, MalformedCall)
    assert reason in call.reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<span>1 - 2</span><fps>0</fps>", "above 0"),
        ("<span>1 - 2</span><fps>-2</fps>", "above 0"),
        ("<span>2 - 1</span><fps>2</fps>", "reversed"),
        ("<span>2 - 2</span><fps>2</fps>", "reversed"),
        ("<span>60 - 70</span><fps>2</fps>", "outside"),
        ("<span>-9 - -8</span><fps>2</fps>", "outside"),
        ("<span>59.95 - 70</span><fps>2</fps>", "less than 0.1 seconds"),
    ],
)
def test_a_refused_call_says_what_it_asked_for_in_vain(text, reason):
    call = read(text)
    assert isinstance(call, RefusedCall)
    assert reason in call.reason


def test_the_window_is_clamped_to_the_clip_and_this_is_recorded():
    call = read("<span>-2 - 99</span><fps>0.5</fps>")
    assert call.span == TimeSpan(0.0, 60.0)
    assert call.asked == TimeSpan(-2.0, 99.0)
    assert call.clamped == ("start", "end")


def test_a_window_of_exactly_the_smallest_length_is_granted():
    assert read("<span>1 - 1.1</span><fps>10</fps>").num_frames == 1


@pytest.mark.parametrize(
    ("native_fps", "granted"), [(30.0, 10.0), (5.0, 5.0), (29.97, 10.0), (0.0, 10.0), (float("nan"), 10.0)]
)
def test_the_rate_is_clamped_to_the_limit_and_the_native_rate(native_fps, granted):
    call = read("<span>0 - 2</span><fps>24</fps>", native_fps=native_fps)
    assert (call.fps, call.asked_fps, call.clamped) == (granted, 24.0, ("fps",))


@pytest.mark.parametrize(
    ("asked", "native_fps", "granted", "clamped"),
    [("0.5", 30.0, 3.0, ("fps",)), ("3", 30.0, 3.0, ()), ("4", 30.0, 4.0, ()), ("1", 2.0, 2.0, ("fps",))],
)
def test_a_rate_below_the_floor_is_raised_as_far_as_the_native_rate(asked, native_fps, granted, clamped):
    call = read(f"<span>0 - 2</span><fps>{asked}</fps>", native_fps=native_fps, rules=RetrievalRules(min_fps=3.0))
    assert (call.fps, call.asked_fps, call.clamped) == (granted, float(asked), clamped)


def test_a_floor_at_the_limit_fixes_the_rate_but_grants_no_nonsense():
    fixed = RetrievalRules(min_fps=3.0, max_fps=3.0)
    assert {read(f"<span>0 - 2</span><fps>{fps}</fps>", rules=fixed).fps for fps in ("0.1", "3", "10")} == {3.0}
    assert read("<span>0 - 2</span><fps>0</fps>", rules=fixed) == RefusedCall("the frame rate must be above 0")
    with pytest.raises(ValueError, match="min_fps"):
        RetrievalRules(min_fps=4.0, max_fps=3.0)


def test_a_rate_below_one_hundredth_is_one_hundredth():
    call = read("<span>0 - 2</span><fps>0.001</fps>")
    assert (call.fps, call.num_frames) == (0.01, 1)


def test_frames_are_counted_in_integer_hundredths():
    # in floats (4.35 - 0.0) * 10 * ... style products fall just below whole numbers
    assert read("<span>0.00 - 1.10</span><fps>10</fps>").num_frames == 11
    assert read("<span>0.1 - 0.8</span><fps>10</fps>").num_frames == 7
    assert read("<span>8.1 - 8.4</span><fps>10</fps>").num_frames == 3


def test_there_is_at_least_one_frame():
    call = read("<span>1 - 1.5</span><fps>1</fps>")
    assert (call.num_frames, call.clamped, frame_times(call)) == (1, (), (1.0,))


def test_frames_stand_at_the_start_plus_multiples_of_the_interval():
    assert frame_times(read("<span>2 - 4</span><fps>2</fps>")) == (2.0, 2.5, 3.0, 3.5)
    assert frame_times(read("<span>0 - 1</span><fps>3</fps>")) == (0.0, 1 / 3, 2 / 3)


@pytest.mark.parametrize(("rules_cap", "context_cap"), [(4, None), (32, 4), (4, 9)])
def test_where_a_cap_bites_the_window_stays_whole_and_the_spacing_widens(rules_cap, context_cap):
    rules = RetrievalRules(max_frames=rules_cap)
    call = read("<span>10 - 20</span><fps>5</fps>", rules=rules, max_frames=context_cap)
    assert (call.num_frames, call.clamped, call.span) == (4, ("frames",), TimeSpan(10.0, 20.0))
    assert frame_times(call) == (10.0, 12.5, 15.0, 17.5)


def test_without_room_for_a_single_frame_the_call_is_refused():
    assert read("<span>1 - 2</span><fps>2</fps>", max_frames=0) == RefusedCall("no room is left for frames")


def test_hostile_lengths_are_read_in_linear_time():
    started = time.perf_counter()
    size = 10**6
    read("<span>" * size + "</fps>")
    read("<span>" + "1" * size + " - 2</span><fps>2</fps>")
    read("<span>" + " " * size + "</span><fps>2</fps>")
    read("<span>" + "1." * size + "</span><fps>2</fps>")
    read("<span>1 - 2</span><fps>" + "9" * size + "</fps>")
    assert time.perf_counter() - started < within(2.0)


hundredths = st.integers(-5_000, 20_000)


@given(start=hundredths, length=st.integers(-100, 9_000), rate=st.integers(1, 9_999), duration=st.floats(0.0, 120.0))
def test_whatever_is_granted_lies_within_the_clip_and_the_limits(start, length, rate, duration):
    text = f"<span>{start / 100:.2f} - {(start + length) / 100:.2f}</span><fps>{rate / 100:.2f}</fps>"
    call = read(text, duration_s=duration)
    if isinstance(call, RefusedCall):
        return
    times = frame_times(call)
    assert 0.0 <= call.span.start_s < call.span.end_s <= duration
    assert 0 < call.fps <= RULES.max_fps
    assert 1 <= call.num_frames == len(times) <= RULES.max_frames
    assert all(call.span.start_s <= t < call.span.end_s for t in times)
    assert list(times) == sorted(set(times))


@given(start=st.integers(0, 5_000), length=st.integers(10, 900), rate=st.integers(1, 1_000))
def test_counts_and_times_agree_with_exact_fractions(start, length, rate):
    span = TimeSpan(start / 100, (start + length) / 100)
    call = read(render_call(span, rate / 100), rules=RetrievalRules(max_frames=10_000))
    window, fps = Fraction(length, 100), Fraction(rate, 100)
    assert call.num_frames == max(1, int(window * fps))
    assert frame_times(call) == tuple(float(Fraction(start, 100) + i / fps) for i in range(call.num_frames))


@given(start=st.integers(0, 5_000), length=st.integers(10, 900), rate=st.integers(1, 1_000))
def test_what_is_rendered_is_read_back(start, length, rate):
    span = TimeSpan(start / 100, (start + length) / 100)
    call = read(render_call(span, rate / 100))
    assert (call.asked, call.asked_fps, call.span, call.fps) == (span, rate / 100, span, rate / 100)


piece = st.sampled_from(
    ["<span>", "</span>", "<fps>", "</fps>", "1", "-", " - ", ".", " ", "9" * 5_000, "\n", "é", "-1"]
)


@given(st.lists(piece, max_size=20).map("".join), st.text(max_size=30), st.floats(), st.floats())
def test_garbage_never_raises(structured, text, duration, native_fps):
    for garbage in (
        structured,
        text,
        structured + text,
        structured + "</fps>",
        f"<span>{text}</span><fps>{text}</fps>",
    ):
        outcome = read(garbage, duration_s=duration, native_fps=native_fps)
        assert (outcome is None) == (not garbage.endswith("</fps>"))


def test_a_clip_of_absurd_length_breaks_nothing():
    call = read("<span>1 - 9999999999</span><fps>2</fps>", duration_s=1.7e308)
    assert (call.span.start_s, call.num_frames) == (1.0, 32)  # more digits than any clip needs: ten billion seconds
