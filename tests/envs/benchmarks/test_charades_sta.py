"""Charades-STA: lines to sentences, and R1 and mIoU of the window that is answered."""

import pytest

from envs.benchmarks.charades_sta import CHARADES_STA
from envs.data.rows import DatasetError
from rl.trajectory import AnswerKind, TimeSpan

ROWS = "OPENS 2.0 10.0##a person opens the door.\nSLEEP 0.0 4.0##person sleeping.\nSLEEP 3.0 40.5##person awakes.\n"
R1 = ("r1@0.3", "r1@0.5", "r1@0.7")


@pytest.fixture
def examples(write, videos):
    return CHARADES_STA.read(write("charades_sta_test.txt", ROWS), videos("OPENS.mp4", "SLEEP.avi")).examples


def test_a_line_is_a_sentence_with_its_window(examples):
    first, _, last = examples
    assert (first.task.task_id, first.windows) == ("charades_sta_test:1", (TimeSpan(2, 10),))
    assert "a person opens the door." in first.task.question
    assert (first.task.answer, first.task.answer_kind) == ("2.00 - 10.00", AnswerKind.SPAN)
    assert last.task.video_path.endswith("SLEEP.avi")
    assert last.windows == (TimeSpan(3, 40.5),)  # as annotated, though clips are about 30 s long


@pytest.mark.parametrize(
    ("answer", "reached", "iou"),
    [  # the window is 2 - 10: 8 s
        ("2.0 - 10.0", (1, 1, 1), 1.0),
        ("from 2 to 10 seconds", (1, 1, 1), 1.0),
        ("2s–10s", (1, 1, 1), 1.0),
        ("2 - 7.6", (1, 1, 1), 0.7),  # 5.6 of 8
        ("2 - 6", (1, 1, 0), 0.5),
        ("4 - 12", (1, 1, 0), 0.6),  # 6 of 10
        ("6 - 14", (1, 0, 0), 4 / 12),
        ("2 - 4.4", (1, 0, 0), 0.3),  # 2.4 of 8
        ("3 - 5", (0, 0, 0), 0.25),
        ("0 - 100", (0, 0, 0), 0.08),
        ("10 - 12", (0, 0, 0), 0.0),  # touches
        ("1000 - 2000", (0, 0, 0), 0.0),  # after the clip: read, and wrong
    ],
)
def test_a_window_that_can_be_read(examples, says, answer, reached, iou):
    values = CHARADES_STA.score(examples[0], says(answer))
    assert [values[name] for name in R1] == list(reached)
    assert values["miou"] == pytest.approx(iou)
    assert values["unparsed"] == 0.0


@pytest.mark.parametrize(
    "answer",
    ["10 - 2", "5 - 5", "2", "-2 - 10", "2 - 10 or 3 - 4", "around 2 to 10", "B", "00:02 - 00:10", "2 - nan", "", None],
)
def test_a_window_that_cannot_be_read_is_worth_0_and_says_so(examples, says, answer):
    looked = (2.0, 10.0)  # that it looked at the right window is no answer
    values = CHARADES_STA.score(examples[0], says(answer, looked))
    assert values == {"r1@0.3": 0, "r1@0.5": 0, "r1@0.7": 0, "miou": 0, "unparsed": 1}


def test_means_are_over_all_sentences(examples, says, means):
    said = {"charades_sta_test:1": says("2 - 6"), "charades_sta_test:2": says("no idea")}  # the third is missing
    # IoU .5, 0, 0 over three; one of the two that are there cannot be read
    table = means(CHARADES_STA, examples, said)
    assert table == pytest.approx({"r1@0.3": 1 / 3, "r1@0.5": 1 / 3, "r1@0.7": 0, "miou": 0.5 / 3, "unparsed": 1 / 2})


def test_rows_that_cannot_be_used_are_reported(write, videos, reasons):
    rows = f"{ROWS}LEOL6 8.0 7.0##person is holding medicine.\nNONE 1 2##x.\nOPENS 1 x##x.\nOPENS 1 2 x\n\xff\n"
    loaded = CHARADES_STA.read(write("test.txt", rows), videos("OPENS.mp4", "SLEEP.mp4", "LEOL6.mp4"))
    assert len(loaded.examples) == 3
    assert [line for line, _ in reasons(loaded)] == [4, 5, 6, 7, 8]
    text = str(reasons(loaded))
    for reason in ("reversed or empty: 8 - 7", "'NONE.mp4' cannot be found", "finite number", "expected 'VIDEO start"):
        assert reason in text


@pytest.mark.parametrize("missing", ["annotation", "videos"])
def test_without_the_file_or_the_folder_nothing_can_be_read(write, tmp_path, missing):
    path = tmp_path / "none.txt" if missing == "annotation" else write("rows.txt", ROWS)
    with pytest.raises(DatasetError, match="no such"):
        CHARADES_STA.read(path, tmp_path if missing == "annotation" else tmp_path / "none")


@pytest.mark.real_data
@pytest.mark.parametrize(("split", "count", "bad"), [("test", 3720, []), ("train", 12404, [8252, 8440, 9623, 9624])])
def test_the_published_file_is_read_whole(real_data_dir, videos, reasons, split, count, bad):
    path = real_data_dir / "charades_sta" / f"charades_sta_{split}.txt"
    root = videos(*{f"{line.split()[0]}.mp4" for line in path.read_text(encoding="utf-8").splitlines()})
    loaded = CHARADES_STA.read(path, root)
    assert len(loaded.examples) == count
    assert [line for line, reason in reasons(loaded) if "reversed or empty" in reason] == bad
    assert len(loaded.rejected) == len(bad)
