"""ReXTime: the answer is right, the window reaches half of the evidence, or both."""

import json

import pytest

from envs.benchmarks.rextime import REXTIME
from rl.trajectory import TimeSpan

ROW = {
    "qid": "anet_val92",
    "vid": "v_ZMTi498qnPc",
    "source": "activitynet_captions_val_1",
    "category": "sequential",
    "question": "What does the woman do before smiling?",
    "options": ["She sits.", "She runs.", "She sings.", "She runs."],
    "answer": "From <s0> to <e0>, <option>",
    "ans": "B",
    "span": [4, 12],
    "duration": 100.5,
}


@pytest.fixture
def example(write, videos):
    (example,) = REXTIME.read(write("rextime_val.json", [ROW]), videos("v_ZMTi498qnPc.mp4")).examples
    return example


def test_a_row_has_its_options_its_letter_and_its_window(example):
    assert (example.task.task_id, example.task.answer, example.group) == ("anet_val92", "B", "sequential")
    assert example.windows == (TimeSpan(4, 12),)
    assert "\nA. She sits.\nB. She runs.\nC. She sings.\nD. She runs.\n" in example.task.question


@pytest.mark.parametrize(
    ("answer", "windows", "acc_qa", "acc_gqa", "iou"),
    [  # right is B, evidence 4 - 12
        ("B", [(4, 12)], 1, 1, 1.0),
        ("B", [(4, 8)], 1, 1, 0.5),
        ("B", [(4, 7.9)], 1, 0, 3.9 / 8),
        ("B", [(0, 16)], 1, 1, 0.5),
        ("B", [(5, 6)], 1, 0, 0.125),  # inside, but IoU counts here and not IoP
        ("B", [(12, 20)], 1, 0, 0.0),
        ("B", [(6, 6)], 1, 0, 0.0),
        ("B", [(12, 4)], 1, 0, 0.0),
        ("B", [(200, 300)], 1, 0, 0.0),
        ("B", [(50, 60), (4, 12)], 1, 1, 1.0),
        ("D", [(4, 12)], 0, 0, 1.0),  # the same text as B, another letter
        ("C", [(4, 12)], 0, 0, 1.0),
        ("She runs.", [(4, 12)], 0, 0, 1.0),
        (None, [(4, 12)], 0, 0, 1.0),
        ("B", [], 1, 0, 0.0),
    ],
)
def test_golden(example, says, answer, windows, acc_qa, acc_gqa, iou):
    values = REXTIME.score(example, says(answer, *windows))
    assert (values["acc_qa"], values["acc_gqa@0.5"]) == (acc_qa, acc_gqa)
    assert values["miou"] == pytest.approx(iou)
    assert (values["r1@0.3"], values["r1@0.5"]) == (iou >= 0.3, iou >= 0.5)
    no_letter, no_window = answer in ("She runs.", None), not windows
    assert values["unparsed"] == (no_letter or no_window)
    assert (values["unparsed/answer"], values["unparsed/window"]) == (no_letter, no_window)


def test_several_windows_count_by_the_best(write, videos, says):
    row = {**ROW, "relevant_windows": [[4, 12], [30, 40]]}
    (example,) = REXTIME.read(write("val.jsonl", row), videos("videos/v_ZMTi498qnPc.mp4")).examples
    assert REXTIME.score(example, says("B", (30, 36)))["miou"] == pytest.approx(0.6)


@pytest.mark.parametrize("span", [{"span": [1, 1]}, {"relevant_windows": [[0, 0]]}])
def test_a_point_is_a_window_that_no_look_overlaps(write, videos, says, span):
    (example,) = REXTIME.read(write("val.json", [{**ROW, **span}]), videos("v_ZMTi498qnPc.mp4")).examples
    assert example.task.evidence_span is None
    for look in ((0, 2), (1, 1), (0, 0), (5, 6)):
        values = REXTIME.score(example, says("B", look))
        assert (values["acc_qa"], values["acc_gqa@0.5"], values["miou"], values["r1@0.3"]) == (1, 0, 0, 0)


@pytest.mark.real_data
def test_the_published_questions_all_count(real_data_dir, write, videos):
    rows = [json.loads(line) for line in (real_data_dir / "rextime" / "rextime_val.jsonl").open(encoding="utf-8")]
    whole = [{**row, "question": row["query"], "options": list("wxyz")} for row in rows]  # as the data set has them
    loaded = REXTIME.read(write("rextime_val.json", whole), videos(*{f"{row['vid']}.mp4" for row in rows}))
    assert (len(loaded.examples), loaded.rejected) == (921, ())
    points = [one.task.task_id for one in loaded.examples if one.windows[0].length_s == 0]
    assert points == ["anet_val867", "anet_val889"]


def test_means_are_over_all_questions(write, videos, says, means):
    rows = [{**ROW, "qid": number} for number in range(4)]
    examples = REXTIME.read(write("val.jsonl", *rows), videos("v_ZMTi498qnPc.mp4")).examples
    said = {"0": says("B", (4, 12)), "1": says("A", (4, 8)), "2": says("?", (0, 1))}  # 3 is missing
    table = means(REXTIME, examples, said)
    assert (table["acc_qa"], table["acc_gqa@0.5"]) == (1 / 4, 1 / 4)
    assert (table["r1@0.5"], table["miou"]) == (2 / 4, 1.5 / 4)
    assert table["unparsed"] == pytest.approx(1 / 3)


def test_rows_that_cannot_be_used_are_reported(write, videos, reasons):
    evaluation = {"qid": "q", "query": "?", "vid": "v_ZMTi498qnPc", "relevant_windows": [[0, 28]], "ans": "A"}
    test_split = {key: value for key, value in ROW.items() if key not in ("ans", "span")}
    rows = [evaluation, test_split, {**ROW, "ans": "E"}, {**ROW, "span": [4]}, {**ROW, "options": ["one"]}]
    loaded = REXTIME.read(write("val.jsonl", *rows), videos("v_ZMTi498qnPc.mp4"))
    parts = ["read rextime_val.json", "answers are withheld", "none of A, B, C, D", "[start, end]", "2 to 26 options"]
    assert loaded.examples == ()
    for (_, reason), part in zip(reasons(loaded), parts, strict=True):
        assert part in reason
