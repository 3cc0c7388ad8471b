"""NExT-GQA: an answer counts as grounded if half of what was looked at is evidence; both denominators."""

import csv
import io
import json

import pytest

from envs.benchmarks.nextgqa import NEXTGQA
from envs.data.rows import DatasetError
from rl.trajectory import TimeSpan

HEADER = "video_id,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n"
ROWS = (
    'why did the boy punch,"to dance, on the floor",2,CW,to touch,"to dance, on the floor",to play,he is bored,listen',
    "how is the baby feeling,happy,4,TC,embarrassed,sad,calmer,happy,happy",
)
WINDOWS = {"77": {"duration": 35, "location": {"2": [[0, 4], [10, 20]], "4": [[-0.1, 12.6]]}, "fps": 29.97}}


@pytest.fixture
def read(write, videos):
    def make(rows=ROWS, windows=WINDOWS, video="77.mp4"):
        write("gsub_test.json", windows)
        text = HEADER + "".join(f"77,700,640,480,{row}\n" for row in rows)
        return NEXTGQA.read(write("test.csv", text), videos(video))

    return make


def test_a_row_has_its_options_its_windows_and_its_type(read):
    first, second = read().examples
    assert (first.task.task_id, first.group) == ("77_2", "CW")
    assert first.windows == (TimeSpan(0, 4), TimeSpan(10, 20))
    assert first.task.answer == "B"
    assert "why did the boy punch\nA. to touch\nB. to dance, on the floor\nC. to play" in first.task.question
    assert second.windows == (TimeSpan(-0.1, 12.6),)  # as annotated
    assert second.task.evidence_span == TimeSpan(0, 12.6)


def test_of_options_with_the_same_text_the_first_letter_is_right(read, says):
    _, twice = read().examples
    assert twice.task.answer == "D"
    assert NEXTGQA.score(twice, says("D"))["acc_qa"] == 1.0
    assert NEXTGQA.score(twice, says("E"))["acc_qa"] == 0.0  # the same text, another letter
    assert NEXTGQA.score(twice, says("happy"))["acc_qa"] == 0.0  # a text is no letter


@pytest.mark.parametrize(
    ("answer", "windows", "acc_qa", "acc_gqa", "iou", "iop"),
    [  # right is B, evidence 0 - 4 and 10 - 20
        ("B", [(10, 20)], 1, 1, 1.0, 1.0),
        ("(B) to dance", [(0, 4)], 1, 1, 1.0, 1.0),
        ("A", [(10, 20)], 0, 0, 1.0, 1.0),  # a right window does not correct an answer
        ("B", [(12, 14)], 1, 1, 0.2, 1.0),  # a small part of the evidence, but nothing else
        ("B", [(0, 20)], 1, 1, 0.5, 0.5),  # exactly half
        ("B", [(0, 21)], 1, 0, 10 / 21, 10 / 21),
        ("B", [(3, 5)], 1, 1, 0.2, 0.5),
        ("B", [(4, 10)], 1, 0, 0.0, 0.0),  # between the two
        ("B", [(25, 35)], 1, 0, 0.0, 0.0),
        ("B", [(40, 50)], 1, 0, 0.0, 0.0),  # after the clip
        ("B", [(3, 3)], 1, 1, 0.0, 1.0),  # a point inside
        ("B", [(10, 10)], 1, 1, 0.0, 1.0),  # a point on an edge
        ("B", [(5, 5)], 1, 0, 0.0, 0.0),
        ("B", [(14, 12)], 1, 0, 0.0, 0.0),  # reversed
        ("B", [(10, 20), (25, 35)], 1, 0, 0.0, 0.0),  # the last look counts
        ("B", [(25, 35), (10, 20)], 1, 1, 1.0, 1.0),
        ("b.", [(10, 20)], 1, 1, 1.0, 1.0),
        ("to dance, on the floor", [(10, 20)], 0, 0, 1.0, 1.0),
        ("B or C", [(10, 20)], 0, 0, 1.0, 1.0),
        (None, [(10, 20)], 0, 0, 1.0, 1.0),
    ],
)
def test_golden(read, says, answer, windows, acc_qa, acc_gqa, iou, iop):
    values = NEXTGQA.score(read().examples[0], says(answer, *windows))
    assert (values["acc_qa"], values["acc_gqa"]) == (acc_qa, acc_gqa)
    assert (values["miou"], values["miop"]) == (pytest.approx(iou), pytest.approx(iop))
    for threshold in (0.3, 0.5):
        assert values[f"iou@{threshold}"] == float(iou >= threshold)
        assert values[f"iop@{threshold}"] == float(iop >= threshold)
    assert all(values[f"predicted/{name}"] == values[name] for name in ("acc_gqa", "miop", "miou", "iop@0.5"))
    unread = answer not in ("A", "B", "b.", "(B) to dance")
    assert (values["unparsed"], values["unparsed/answer"], values["unparsed/window"]) == (unread, unread, 0)


def test_without_a_look_the_answer_may_be_right_but_is_not_grounded(read, says):
    values = NEXTGQA.score(read().examples[0], says("B"))
    assert (values["acc_qa"], values["acc_gqa"], values["miop"]) == (1, 0, 0)
    assert (values["unparsed"], values["unparsed/answer"], values["unparsed/window"]) == (1, 0, 1)
    assert not any(name.startswith("predicted/") for name in values)


def test_both_denominators(read, says, means):
    rows = [ROWS[0].replace(",2,CW", f",{number},CW") for number in range(4)]
    windows = {"77": {"location": {str(number): [[10, 20]] for number in range(4)}}}
    examples = read(rows, windows).examples
    said = {"77_0": says("B", (10, 20)), "77_1": says("A", (10, 20)), "77_2": says("B")}  # 3 is missing
    table = means(NEXTGQA, examples, said)
    assert table["acc_qa"] == 2 / 4
    assert table["acc_gqa"] == 1 / 4  # what is missing counts 0
    assert table["predicted/acc_gqa"] == 1 / 2  # the official script skips what has no window
    assert (table["miou"], table["predicted/miou"]) == (2 / 4, 1.0)
    assert table["unparsed"] == pytest.approx(1 / 3)  # of the three predictions


def test_videos_may_lie_where_the_map_says(write, videos):
    write("gsub_val.json", WINDOWS)
    write("map_vid_vidorID.json", {"77": "1164/77"})
    annotation = write("val.csv", f"{HEADER}77,700,640,480,{ROWS[0]}\n")
    (example,) = NEXTGQA.read(annotation, videos("NExTVideo/1164/77.mp4")).examples
    assert example.task.video_path.endswith("NExTVideo/1164/77.mp4")


def test_rows_that_cannot_be_used_are_reported(read, reasons):
    rows = [
        ROWS[0],
        ROWS[0],
        ROWS[0].replace(",2,CW", ",9,CW"),
        ",none of them,4,CW,a,b,c,d,e",
        "why,a,4,CW,a,b",
    ]
    loaded = read(rows)
    assert [example.task.task_id for example in loaded.examples] == ["77_2"]
    assert [line for line, _ in reasons(loaded)] == [3, 4, 5, 6]
    text = [reason for _, reason in reasons(loaded)]
    assert text[0] == "the id '77_2' belongs to line 2 already"
    assert text[1] == "gsub_test.json has no windows for question 9 of video 77"
    assert "'question' must be a text" in text[2] and "'a2' must be a text" in text[3]


def test_a_blank_option_and_an_answer_that_is_none_do_not_cost_the_question(read, says):
    rows = ["why,none of them,2,CW,a,b,c,d,e", "why,,4,CW,a,b,c,,e"]
    nobody, blank = read(rows).examples
    assert not any(NEXTGQA.score(nobody, says(letter, (0, 4)))["acc_qa"] for letter in "ABCDE")
    assert NEXTGQA.score(nobody, says("A", (0, 4)))["miop"] == 1.0  # it counts, as in the authors' loader
    assert blank.task.answer == "D" and "\nC. c\nD.\nE. e\n" in blank.task.question


@pytest.mark.parametrize("video", ["78.mp4", "elsewhere/77.mp4"])
def test_a_missing_video_is_reported_with_its_name(read, reasons, video):
    assert all("'77.mp4' cannot be found" in reason for _, reason in reasons(read(video=video)))


@pytest.mark.parametrize(
    "windows", [{}, {"77": []}, {"77": {"location": {"2": []}}}, {"77": {"location": {"2": [[4, 0]]}}}]
)
def test_a_question_without_usable_windows_is_reported(read, windows):
    loaded = read(ROWS[:1], windows)
    assert loaded.examples == () and len(loaded.rejected) == 1


def test_the_windows_belong_beside_the_questions(write, videos):
    with pytest.raises(DatasetError, match=r"gsub_train\.json: no such annotation file; the evidence windows of train"):
        NEXTGQA.read(write("train.csv", HEADER), videos("77.mp4"))


@pytest.mark.real_data
@pytest.mark.parametrize(("split", "count", "several", "negative"), [("test", 5553, 591, 36), ("val", 3358, 339, 0)])
def test_the_published_files_are_read_whole(real_data_dir, videos, split, count, several, negative):
    path = real_data_dir / "nextgqa" / f"{split}.csv"
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    loaded = NEXTGQA.read(path, videos(*{f"{row['video_id']}.mp4" for row in rows}))
    assert (len(rows), len(loaded.examples), loaded.rejected) == (count, count, ())
    assert sum(len(example.windows) > 1 for example in loaded.examples) == several
    assert sum(window.start_s < 0 for example in loaded.examples for window in example.windows) == negative
    located = json.loads((real_data_dir / "nextgqa" / f"gsub_{split}.json").read_bytes())
    assert sum(len(of_video["location"]) for of_video in located.values()) == count  # each has its question


@pytest.mark.real_data
def test_one_published_question_has_its_answer_twice(real_data_dir, videos):
    examples = NEXTGQA.read(real_data_dir / "nextgqa" / "test.csv", videos("3842638015.mp4")).examples
    (twice,) = [example for example in examples if example.task.task_id == "3842638015_4"]
    assert "D. happy\nE. happy" in twice.task.question and twice.task.answer == "D"
