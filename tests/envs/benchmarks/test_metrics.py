"""Windows overlap as the official evaluators measure it; answers are read from their body alone."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.benchmarks.benchmark import Prediction
from envs.benchmarks.metrics import best_iop, best_iou, chosen_letter, looked_at, recall_values, stated_window
from rl.trajectory import TimeSpan

EVIDENCE = (TimeSpan(0, 4), TimeSpan(10, 20))
SECONDS = st.floats(-1e4, 1e4, allow_nan=False)
ANY = SECONDS | st.sampled_from([math.nan, math.inf, -math.inf])
ANY_WINDOW = st.builds(TimeSpan, ANY, ANY)
WINDOWS = st.tuples(SECONDS, SECONDS).map(lambda edges: TimeSpan(min(edges), max(edges)))


@pytest.mark.parametrize(
    ("window", "iou", "iop"),
    [
        ((10, 20), 1.0, 1.0),
        ((0, 4), 1.0, 1.0),
        ((12, 14), 0.2, 1.0),  # 2 of 10 s; all of what was looked at
        ((0, 20), 0.5, 0.5),  # the longer one: 10 of 20 s
        ((3, 5), 0.2, 0.5),  # 1 of the hull's 5 s; 1 of 2 s
        ((8, 24), 10 / 16, 10 / 16),
        ((4, 10), 0.0, 0.0),  # touches both
        ((30, 40), 0.0, 0.0),  # after the clip
        ((-9, -1), 0.0, 0.0),  # before it
        ((-4, 4), 0.5, 0.5),
        ((3, 3), 0.0, 1.0),  # a point inside
        ((4, 4), 0.0, 1.0),  # a point on an edge is inside
        ((5, 5), 0.0, 0.0),  # a point outside
        ((14, 12), 0.0, 0.0),  # reversed
        ((0, math.inf), 0.0, 0.0),
        ((-math.inf, math.inf), 0.0, 0.0),
        ((math.nan, 4), 0.0, 0.0),
    ],
)
def test_the_best_of_several_windows_counts(window, iou, iop):
    assert best_iou(TimeSpan(*window), EVIDENCE) == pytest.approx(iou)
    assert best_iop(TimeSpan(*window), EVIDENCE) == pytest.approx(iop)


def test_iou_and_iop_may_come_from_different_windows():
    evidence = (TimeSpan(0, 100), TimeSpan(100, 103))
    # of the first: 10 s shared, hull 103 -> IoU .097, IoP 10/13; of the second: 3 s, hull 13 -> IoU 3/13, IoP 3/13
    assert best_iou(TimeSpan(90, 103), evidence) == pytest.approx(3 / 13)
    assert best_iop(TimeSpan(90, 103), evidence) == pytest.approx(10 / 13)


def test_without_a_window_or_without_evidence_there_is_no_overlap():
    assert best_iou(None, EVIDENCE) == best_iop(None, EVIDENCE) == 0.0
    assert best_iou(TimeSpan(0, 1), ()) == best_iop(TimeSpan(0, 1), ()) == 0.0


@given(ANY_WINDOW, st.lists(ANY_WINDOW, max_size=4))
def test_overlaps_are_shares_whatever_the_windows(window, evidence):
    assert 0 <= best_iou(window, evidence) <= 1
    assert 0 <= best_iop(window, evidence) <= 1


@given(WINDOWS, st.lists(WINDOWS, min_size=1, max_size=4))
def test_overlaps_equal_the_official_loops(window, evidence):
    """An oracle in the manner of eval_ground.py: the running maximum, unclipped intersections."""
    iou = iop = 0.0
    for one in evidence:
        if window.start_s == window.end_s:
            iop = max(iop, float(one.start_s <= window.start_s <= one.end_s))
            continue
        inter = min(one.end_s, window.end_s) - max(one.start_s, window.start_s)
        iou = max(iou, inter / (max(one.end_s, window.end_s) - min(one.start_s, window.start_s)))
        iop = max(iop, inter / (window.end_s - window.start_s))

    assert best_iop(window, evidence) == iop
    if all(one.length_s > 0 for one in evidence):  # readers refuse an evidence window that is a point
        assert best_iou(window, evidence) == iou


@pytest.mark.parametrize(
    ("iou", "reached"),
    [
        (0.3, (1, 0, 0)),
        (0.29999, (0, 0, 0)),
        (0.5, (1, 1, 0)),
        (0.7, (1, 1, 1)),
        (0.69999, (1, 1, 0)),
        (1.0, (1, 1, 1)),
    ],
)
def test_a_threshold_is_reached_by_equality(iou, reached):
    values = recall_values(iou, (0.3, 0.5, 0.7))
    assert (values["r1@0.3"], values["r1@0.5"], values["r1@0.7"], values["miou"]) == (*reached, iou)


@pytest.mark.parametrize(
    ("answer", "letter", "window"),
    [
        ("B", "B", None),
        ("(b)", "B", None),
        ("B. from 2 to 3", "B", None),
        ("2 - 3", None, TimeSpan(2, 3)),
        ("from 2s to 3.5s", None, TimeSpan(2, 3.5)),
        ("3 - 2", None, None),
        ("2 - 2", None, None),
        ("the answer is B", None, None),
        ("B, C", None, None),
        ("", None, None),
        (None, None, None),
    ],
)
def test_an_answer_is_read_whole_or_not_at_all(answer, letter, window):
    assert chosen_letter(Prediction(answer)) == letter
    assert stated_window(Prediction(answer)) == window


def test_a_missing_prediction_says_nothing():
    assert chosen_letter(None) is stated_window(None) is looked_at(None) is None


def test_the_last_window_is_what_had_been_seen_when_it_answered():
    assert looked_at(Prediction("B", (TimeSpan(0, 1), TimeSpan(5, 6)))) == TimeSpan(5, 6)
    assert looked_at(Prediction("B")) is None
