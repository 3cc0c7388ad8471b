"""What a text answers, and how two windows overlap."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.answers import interval_iou, read_letter, read_span
from rl.trajectory import TimeSpan

SECONDS = st.floats(0, 1e4, allow_nan=False)
WINDOWS = st.tuples(SECONDS, SECONDS).map(lambda edges: TimeSpan(min(edges), max(edges)))


@pytest.mark.parametrize("text", ["B", "b", "(B)", "(b)", "B.", "B. a red ball", "B) red", "(B) red", "B: red", " B\n"])
def test_a_letter_in_its_usual_forms(text):
    assert read_letter(text) == "B"


@pytest.mark.parametrize(
    "text", ["", "ball", "A dog runs", "B, C", "BC", "A/B", "(B", "the answer is B", "5", "ſ", "ß."]
)
def test_not_a_choice(text):
    assert read_letter(text) is None


@pytest.mark.parametrize(
    ("text", "window"),
    [
        ("3 - 8.5", (3, 8.5)),
        ("0.00 - 8.00", (0, 8)),
        ("3s-8.5s", (3, 8.5)),
        ("from 3 to 8.5 seconds", (3, 8.5)),
        ("3.25–4.5 sec.", (3.25, 4.5)),
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
