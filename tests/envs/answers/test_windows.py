"""Windows in answers: how they are read and written, and how two overlap."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.answers.letters import read_letter
from envs.answers.windows import interval_iou, read_span, spell_span
from rl.trajectory import TimeSpan

SECONDS = st.floats(0, 1e4, allow_nan=False)
WINDOWS = st.tuples(SECONDS, SECONDS).map(lambda edges: TimeSpan(min(edges), max(edges)))


@pytest.mark.parametrize(
    ("text", "window"),
    [
        ("3 - 8.5", (3, 8.5)),
        ("0.00 - 8.00", (0, 8)),
        ("3s-8.5s", (3, 8.5)),
        ("from 3 to 8.5 seconds", (3, 8.5)),
        ("3.25–4.5 sec.", (3.25, 4.5)),
        ("1 second - 3 seconds", (1, 3)),
        ("1.0 \u2212 3.0", (1, 3)),
    ],
)
def test_a_span_in_its_usual_forms(text, window):
    assert read_span(text) == TimeSpan(*window)


@pytest.mark.parametrize(
    "text", ["", "3", "8 - 3", "3 - 3", "-3 - 8", "3 - nan", "1e3 - 2e3", "3 - 8 - 9", "9" * 400 + " - 1"]
)
def test_not_a_read_span(text):
    assert read_span(text) is None


@given(st.text())
def test_no_text_breaks_a_reader(text):
    read_letter(text), read_span(text)


@pytest.mark.parametrize(
    "text", ["3" + " " * 200_000, "3 -" + "\t" * 200_000 + "x", "from" + " " * 200_000, "(B" * 100_000]
)
def test_a_long_text_is_read_once(text):
    started = time.perf_counter()
    assert read_letter(text) is None and read_span(text) is None
    assert time.perf_counter() - started < 1  # milliseconds; tried again from every blank it would be minutes


@given(WINDOWS)
def test_a_window_that_is_written_is_read_again_to_a_hundredth_of_a_second(window):
    if window.length_s > 1e-8:
        read = read_span(spell_span(window))
        assert abs(read.start_s - window.start_s) <= 0.005 + 1e-9 and abs(read.end_s - window.end_s) <= 0.005 + 1e-9


@pytest.mark.parametrize(("window", "text"), [((3, 8.5), "3.00 - 8.50"), ((0.001, 0.004), "0.001000000 - 0.004000000")])
def test_a_window_is_written_to_hundredths_unless_nothing_would_be_left_of_it(window, text):
    assert spell_span(TimeSpan(*window)) == text


@pytest.mark.parametrize(
    ("asked", "evidence", "iou"),
    [
        ((3, 6), (3, 6), 1.0),
        ((2, 5), (3, 6), 0.5),  # 2 s shared of 4
        ((0, 8), (3, 5), 0.25),
        ((0, 3), (3, 6), 0.0),  # touching
        ((0, 1), (5, 6), 0.0),
        ((6, 3), (3, 6), 0.0),  # reversed
        ((3, 3), (3, 3), 0.0),  # empty
        ((0, float("inf")), (3, 6), 0.0),
        ((float("nan"), 6), (3, 6), 0.0),
    ],
)
def test_iou_of_two_windows(asked, evidence, iou):
    assert interval_iou(TimeSpan(*asked), TimeSpan(*evidence)) == pytest.approx(iou)


@given(WINDOWS, WINDOWS)
def test_iou_is_symmetric_and_within_0_and_1(first, second):
    iou = interval_iou(first, second)

    assert 0 <= iou <= 1
    assert iou == interval_iou(second, first)
