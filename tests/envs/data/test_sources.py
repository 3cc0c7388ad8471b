"""Formats by name, and a user's own reader: its rows are checked like any other, its faults named like a reward's."""

import pytest

from envs.data.dataset import load_tasks, load_traces
from envs.data.rows import DatasetError
from envs.data.sources import Source, has_traces
from rl.trajectory import TimeSpan

MINE = """
import sys
from pathlib import Path
import numpy
import neighbour

def tasks(path):
    for line, text in enumerate(path.read_text().splitlines(), start=1):
        video, answer = text.split()
        yield {"prompt": neighbour.QUESTION, "video": Path(video), "answer": answer, "fps": numpy.float32(2),
               "gt_span_start": numpy.int64(1), "gt_span_end": 2}

def with_lines(path):
    return [(7, {"prompt": "Q", "video": "a.mp4", "answer": "B"}), (9, {"prompt": "Q", "video": "a.mp4"})]

def odd(path):
    return [None, "text", ["prompt"], {"prompt": "Q", "video": "../x.mp4", "answer": "B"}, (0, {}), {}]

def traces(path):
    reply = "<think>x<span>2 - 4</span><fps>3</fps><video>\\\\ny</think><answer>B</answer>"
    yield {"video": ["a.mp4"], "conversations": ({"from": "human", "value": "Q"}, {"from": "gpt", "value": reply})}

def nothing(path):
    pass

def two(path, root):
    pass

def raises(path):
    raise OSError("no network")

def midway(path):
    yield {"prompt": "Q", "video": "a.mp4", "answer": "B"}
    raise KeyError("label")

def prints(path):
    print("reading")
    yield {"prompt": "Q", "video": "a.mp4", "answer": "B"}
    print("done")

def exits(path):
    sys.exit(3)

number = 3
"""


@pytest.fixture
def root(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "mine.py").write_text(MINE.replace("\\\\n", "\\n"))
    (tmp_path / "neighbour.py").write_text("QUESTION = 'Where?'\n")
    (tmp_path / "rows.txt").write_text("a.mp4 B\nb.mp4 C\n")
    return tmp_path


def mine(root, reader):
    return f"{root / 'mine.py'}:{reader}", root / "rows.txt"


def test_a_users_reader_gives_rows_that_are_read_like_any_other(root):
    loaded = load_tasks(*mine(root, "tasks"))
    (task,) = loaded.tasks
    assert (task.task_id, task.question, task.answer) == ("rows:1", "Where?", "B")
    assert (task.evidence_span, task.evidence_fps) == (TimeSpan(1.0, 2.0), 2.0)
    ((line, reason),) = [(row.line, row.reason) for row in loaded.rejected]
    assert line == 2 and "'b.mp4' cannot be found" in reason


def test_a_reader_may_say_on_which_line_a_row_stands(root):
    loaded = load_tasks(*mine(root, "with_lines"))
    assert ([task.task_id for task in loaded.tasks], [row.line for row in loaded.rejected]) == (["rows:7"], [9])


def test_rows_that_a_reader_gets_wrong_are_rejected_one_by_one(root):
    loaded = load_tasks(*mine(root, "odd"))
    assert [row.line for row in loaded.rejected] == [1, 2, 3, 4, 5, 6]
    assert [row.reason.rpartition(", got ")[2] for row in loaded.rejected[:3]] == ["nothing", "a text", "a list"]
    assert "'../x.mp4'" in loaded.rejected[3].reason  # confined like any other


def test_what_a_reader_prints_is_no_answer_of_a_command(root, capsys):
    assert len(load_tasks(*mine(root, "prints")).tasks) == 1
    assert capsys.readouterr() == ("", "reading\ndone\n")


def test_a_reader_whose_rows_are_conversations_gives_traces(root):
    source = Source(*mine(root, "traces"))
    assert has_traces(source) and not has_traces(Source(*mine(root, "tasks")))
    assert [trace.task.answer for trace in load_traces(*source).traces] == ["B"]
    assert [task.answer for task in load_tasks(*source).tasks] == ["B"]


@pytest.mark.parametrize(
    ("reader", "reason"),
    [
        ("tusks", "no function 'tusks' .*did you mean 'tasks'"),
        ("number", r"expected a function reader\(path\), got a number"),
        ("two", r"cannot be called as reader\(path\): missing a required argument: 'root'"),
        ("nothing", "a reader returns or yields rows, got nothing"),
        ("raises", r"OSError: no network at .*mine\.py:\d+ \(at the first row of .*rows\.txt\)"),
        ("midway", r"KeyError: 'label' at .*mine\.py:\d+ \(after 1 rows of .*rows\.txt\)"),
        ("exits", r"SystemExit: 3 at .*mine\.py:\d+"),
    ],
)
def test_a_reader_that_cannot_be_used_is_named_with_the_line_of_its_fault(root, reader, reason):
    with pytest.raises(DatasetError, match=rf"data format '.*mine\.py:{reader}': {reason}"):
        load_tasks(*mine(root, reader))


def test_a_format_that_is_not_known_is_refused_with_those_that_are(root):
    with pytest.raises(DatasetError, match=r"'cvs'; did you mean 'csv'.*known: charades_sta, csv, dm_cot.*reader'"):
        load_tasks("cvs", root / "rows.txt")
    with pytest.raises(DatasetError, match=r"no file .*other\.py"):
        load_tasks(f"{root}/other.py:rows", root / "rows.txt")


def test_columns_are_for_tables(root):
    with pytest.raises(DatasetError, match="format 'dm_rl' has no columns to name; `columns` is for csv and parquet"):
        load_tasks("dm_rl", root / "rows.txt", root, {"prompt": "question"})


def test_a_folder_is_no_annotation_file(root):
    with pytest.raises(DatasetError, match="is a folder without files that this format reads"):
        load_tasks("dm_rl", root)
