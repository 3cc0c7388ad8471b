"""QVHighlights: queries with several windows; the best matching one counts."""

import pytest

from envs.benchmarks.qvhighlights import QVHIGHLIGHTS
from rl.trajectory import TimeSpan

VIDEO = "bP5KfdFJzC4_660.0_810.0"
ROW = {
    "qid": 8737,
    "query": "A family is playing basketball.",
    "duration": 126,
    "vid": VIDEO,
    "relevant_windows": [[0, 16], [60, 80], [100, 102]],
    "relevant_clip_ids": [0, 1],
    "saliency_scores": [[4, 1, 1], [4, 1, 1]],
}


@pytest.fixture
def example(write, videos):
    (example,) = QVHIGHLIGHTS.read(write("val.jsonl", ROW), videos(f"{VIDEO}.mp4")).examples
    return example


def test_a_query_keeps_all_its_windows(example):
    assert example.task.task_id == "8737"
    assert example.windows == (TimeSpan(0, 16), TimeSpan(60, 80), TimeSpan(100, 102))
    assert example.task.answer == "0.00 - 16.00"  # a reference names one; the metric takes all
    assert example.task.evidence_span is None


@pytest.mark.parametrize(
    ("answer", "reached", "iou", "unparsed"),
    [
        ("0 - 16", (1, 1), 1.0, 0),
        ("60 - 80", (1, 1), 1.0, 0),
        ("100 - 102", (1, 1), 1.0, 0),
        ("66 - 80", (1, 1), 0.7, 0),  # 14 of 20
        ("0 - 10", (1, 0), 0.625, 0),
        ("70 - 80", (1, 0), 0.5, 0),
        ("8 - 24", (0, 0), 8 / 24, 0),
        ("0 - 80", (0, 0), 0.25, 0),  # 16 of 80, or 20 of 80: the better one
        ("16 - 60", (0, 0), 0.0, 0),  # between two windows
        ("101 - 101", (0, 0), 0.0, 1),
        ("80 - 60", (0, 0), 0.0, 1),
        ("0 - 16, 60 - 80", (0, 0), 0.0, 1),  # two answers are none
        ("", (0, 0), 0.0, 1),
        (None, (0, 0), 0.0, 1),
    ],
)
def test_golden(example, says, answer, reached, iou, unparsed):
    values = QVHIGHLIGHTS.score(example, says(answer))
    assert values == pytest.approx({"r1@0.5": reached[0], "r1@0.7": reached[1], "miou": iou, "unparsed": unparsed})


def test_a_missing_prediction_is_0(example):
    assert QVHIGHLIGHTS.score(example, None) == {"r1@0.5": 0, "r1@0.7": 0, "miou": 0}


def test_rows_that_cannot_be_used_are_reported(write, videos, reasons):
    without = {key: value for key, value in ROW.items() if key != "relevant_windows"}
    rows = [
        ROW,
        {**without, "qid": 1},
        {**ROW, "qid": 2, "relevant_windows": []},
        {**ROW, "qid": 3, "relevant_windows": [[4, 0], [6, 6]]},
        {**ROW, "qid": 4, "vid": "none"},
        {**ROW, "qid": True},
        {**ROW, "qid": 5, "query": ""},
        ROW,
        7,
    ]
    loaded = QVHIGHLIGHTS.read(write("val.jsonl", *rows), videos(f"{VIDEO}.mp4"))
    assert [example.task.task_id for example in loaded.examples] == ["8737"]
    expected = [
        (2, "the test split's are withheld"),
        (3, "a list of windows that is not empty"),
        (4, "the window is reversed or empty: 6 - 6"),
        (5, "'none.mp4' cannot be found"),
        (6, "'qid' must be an id"),
        (7, "'query' must be a text"),
        (8, "the id '8737' belongs to line 1 already"),
        (9, "expected an object"),
    ]
    assert [line for line, _ in reasons(loaded)] == [line for line, _ in expected]
    for (_, reason), (_, part) in zip(reasons(loaded), expected, strict=True):
        assert part in reason


def test_one_bad_window_of_several_costs_only_itself(write, videos, says):
    windows = [[16, 0], [6, 6], ["a", 3], [-1, 4], [60, 80], [7]]
    loaded = QVHIGHLIGHTS.read(write("val.jsonl", {**ROW, "relevant_windows": windows}), videos(f"{VIDEO}.mp4"))
    (example,) = loaded.examples
    assert [(window.line, window.reason) for window in loaded.left_out] == [
        (1, "the window [16, 0] is reversed, empty or not complete"),
        (1, "'start' must be a finite number, got 'a'"),
        (1, "a window must be [start, end], got [7]"),
    ]
    assert example.windows == (TimeSpan(6, 6), TimeSpan(-1, 4), TimeSpan(60, 80))
    assert example.task.answer == "60.00 - 80.00"  # the first that lies forward in the video
    assert QVHIGHLIGHTS.score(example, says("60 - 80"))["r1@0.7"] == 1
    assert QVHIGHLIGHTS.score(example, says("0 - 16"))["miou"] == pytest.approx(4 / 17)
