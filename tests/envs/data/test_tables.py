"""CSV and Parquet files as rows: columns under their own names or named ones, and what their cells mean."""

import datetime
import gzip
import json
import math
import re
import resource
from decimal import Decimal

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.data.dataset import load_tasks, load_traces
from envs.data.parquet_rows import parquet_rows
from envs.data.rows import DatasetError, UnusableRow
from envs.data.tables import csv_table, parquet_table

COLUMNS = {"prompt": "question", "video": "clip", "answer": "label"}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "a.mp4").touch()
    return tmp_path


@pytest.fixture
def csv(root):
    def write(content, encoding="utf-8"):
        (root / "t.csv").write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
        return root / "t.csv"

    return write


@pytest.fixture
def parquet(root):
    def write(columns, **options):
        pyarrow.parquet.write_table(pyarrow.table(columns), root / "t.parquet", **options)
        return root / "t.parquet"

    return write


def rows(table, path, columns=COLUMNS):
    return [(line, str(row) if isinstance(row, UnusableRow) else row) for line, row in table(path, columns)]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_csv_file_is_read_whatever_its_delimiter_and_encoding(csv, delimiter, encoding):
    lines = ('question,"clip","label",fps', '"a, b; c\td|e?",a.mp4,Zürich,2.5', "x, a.mp4,B,")
    content = "\r\n".join(line.replace(",", delimiter) if "a, b" not in line else line for line in lines)
    content = content.replace('e?",a.mp4,Zürich,2.5', 'e?",a.mp4,Zürich,2.5'.replace(",", delimiter))
    assert rows(csv_table, csv(content, encoding)) == [
        (2, {"prompt": "a, b; c\td|e?", "video": "a.mp4", "answer": "Zürich", "fps": 2.5}),
        (3, {"prompt": "x", "video": "a.mp4", "answer": "B", "fps": None}),
    ]


@pytest.mark.parametrize(
    ("key", "cell", "value"),
    [
        ("fps", "3", 3.0),
        ("fps", " 2.5e0 ", 2.5),
        ("fps", "", None),
        *[("gt_span_start", cell, None) for cell in ("nan", "NaN", "NA", "N/A", "null", "None", " ")],
        ("fps", "1,5", "1,5"),  # refused by whoever reads the number
        ("fps", "1_0", "1_0"),
        ("answer", "1.10", "1.10"),
        ("answer", "007", "007"),
        ("answer", "NA", "NA"),  # sodium, Namibia
        ("answer", "None", "None"),
        ("answer", "true", "true"),
        ("answer", "", None),
        ("evidence", "[[1, 2], [3.5, 4]]", [[1, 2], [3.5, 4]]),
        ("evidence", "", None),
        ("evidence", "1-2", "1-2"),
        ("video", '["a.mp4"]', ["a.mp4"]),
        ("video", "[a].mp4", "[a].mp4"),
    ],
)
def test_a_cell_of_csv_means_what_its_column_is_for(csv, key, cell, value):
    quoted = '"' + cell.replace('"', '""') + '"'
    ((_, row),) = rows(
        csv_table, csv(f"prompt,{key},more\nQ,{quoted},x\n"), {"video": "more", "answer": "more"} | {key: key}
    )
    assert row[key] == value


@pytest.mark.parametrize(
    ("key", "values", "kind", "expected"),
    [
        ("fps", [3, None], pyarrow.int32(), [3, None]),
        ("fps", [2.5, math.nan], pyarrow.float32(), [2.5, None]),
        ("fps", ["2.5", "x"], pyarrow.string(), [2.5, "x"]),
        ("fps", [Decimal("2.50")], pyarrow.decimal128(5, 2), [2.5]),
        ("answer", [3, None], pyarrow.int64(), ["3", None]),
        ("answer", [1.5, math.nan], pyarrow.float64(), ["1.5", None]),
        ("answer", [Decimal("1.10")], pyarrow.decimal128(5, 2), ["1.10"]),
        ("answer", [True], pyarrow.bool_(), [True]),  # refused by whoever reads the text
        ("answer", ["B", "A", "B"], pyarrow.dictionary(pyarrow.int8(), pyarrow.string()), ["B", "A", "B"]),
        ("answer", ["ü".encode(), b"\xff"], pyarrow.binary(), ["ü", b"\xff"]),
        ("answer", ["x"], pyarrow.large_string(), ["x"]),
        ("gt_span_start", [datetime.time(0, 1)], pyarrow.time32("s"), [datetime.time(0, 1)]),
        (
            "evidence",
            [[[1.0, 2.0]], [], None],
            pyarrow.list_(pyarrow.list_(pyarrow.float64())),
            [[[1.0, 2.0]], [], None],
        ),
        ("evidence", ["[[1, 2]]"], pyarrow.string(), [[[1, 2]]]),
        ("video", [["a.mp4"]], pyarrow.list_(pyarrow.string()), [["a.mp4"]]),
    ],
)
def test_a_cell_of_parquet_means_what_its_type_and_column_say(parquet, key, values, kind, expected):
    filler = ["x"] * len(values)
    columns = {"prompt": filler, "video": filler, "answer": filler} | {key: pyarrow.array(values, kind)}
    assert [row[key] for _, row in parquet_table(parquet(columns), {})] == expected


def test_of_media_in_parquet_only_the_place_is_read(root, parquet):
    clip = pyarrow.array([{"bytes": b"\0" * 1000, "path": "a.mp4"}, {"bytes": None, "path": None}])
    path = parquet(
        {"question": ["Q", "R"], "clip": clip, "label": ["B", "B"], "thumbnail": [b"\xff"] * 2, "id": [1, 2]}
    )
    (_, first), (_, second) = rows(parquet_table, path)
    assert first == {"prompt": "Q", "video": "a.mp4", "answer": "B", "id": 1}
    assert second["video"] is None
    loaded = load_tasks("parquet", path, root, COLUMNS)
    assert (len(loaded.tasks), [row.line for row in loaded.rejected]) == (1, [2])


def test_further_columns_are_kept_under_their_names(csv):
    path = csv("question,clip,label,video,score\nQ,a.mp4,B,other.mp4,1-3\n")
    assert rows(csv_table, path) == [(2, {"prompt": "Q", "video": "a.mp4", "answer": "B", "score": "1-3"})]


@pytest.mark.parametrize(
    ("header", "columns", "reason"),
    [
        (
            "question,clip,label",
            COLUMNS | {"prompt": "qestion"},
            "columns.prompt: there is no column 'qestion'; did you mean 'question'?",
        ),
        ("question,clip,label", COLUMNS | {"promt": "question"}, "columns.promt: .*; did you mean 'prompt'?"),
        (
            "question,clip,label",
            {"video": "clip", "answer": "label"},
            "there is no column 'prompt'.*columns: {prompt: NAME}",
        ),
        ("Prompt,video,answer", {}, "no column 'prompt'; did you mean 'Prompt'?"),
        ("a,b,a", COLUMNS, "the column 'a' stands twice"),
        (",", COLUMNS, "there is no column 'question'"),
    ],
)
def test_columns_that_are_not_there_are_refused_with_what_is(root, csv, header, columns, reason):
    with pytest.raises(DatasetError, match=r"t\.csv.*" + re.sub(r"([?{}])", r"\\\1", reason)):
        load_tasks("csv", csv(f"{header}\n1,2,3\n"), root, columns)


def test_parquet_columns_are_refused_alike(root, parquet):
    with pytest.raises(DatasetError, match=r"t\.parquet: columns\.prompt: there is no column 'question'.*are 'a'"):
        load_tasks("parquet", parquet({"a": ["x"]}), root, COLUMNS)
    with pytest.raises(DatasetError, match=r"r\.parquet: the column 'a' stands twice"):
        pyarrow.parquet.write_table(pyarrow.table([["x"], ["y"]], names=["a", "a"]), root / "r.parquet")
        load_tasks("parquet", root / "r.parquet", root, COLUMNS)


def test_a_row_that_cannot_be_used_is_rejected_by_its_line(root, csv):
    path = csv("prompt,video,answer,fps\nQ,a.mp4,B,2\nQ,a.mp4,B,fast\nQ,a.mp4,B,2,3\nQ,a.mp4\nQ,a.mp4,B,\n")
    loaded = load_tasks("csv", path, root)
    assert [task.task_id for task in loaded.tasks] == ["t:2", "t:6"]
    assert [(row.line, row.reason[:40]) for row in loaded.rejected] == [
        (3, "'fps' must be a finite number, got 'fast"),
        (4, "5 cells for 4 columns; is a cell with ',"),
        (5, "'answer' must be a text that is not empty"[:40]),
    ]


def test_conversations_in_a_table_are_traces(root, csv, parquet):
    reply = "<think>x<span>2 - 4</span><fps>3</fps><video>\ny</think><answer>B</answer>"
    turns = [{"from": "human", "value": "<video>Q"}, {"from": "gpt", "value": reply}]
    in_csv = csv('video,talk\na.mp4,"' + json.dumps(turns).replace('"', '""') + '"\n')
    for format, path in (("csv", in_csv), ("parquet", parquet({"video": ["a.mp4"], "talk": [turns]}))):
        loaded = load_traces(format, path, root, {"conversations": "talk"})
        assert [trace.task.answer for trace in loaded.traces] == ["B"] and not loaded.rejected


def test_a_cell_that_cannot_be_read_costs_its_row(root):
    good, bad = pyarrow.array(["x"]), pyarrow.array([b"\xff"]).view(pyarrow.string())  # not validated on the way
    texts = pyarrow.chunked_array([good, bad, good])
    pyarrow.parquet.write_table(pyarrow.table({"prompt": texts}), root / "bad.parquet")
    (_, first), (line, broken), (_, last) = parquet_rows(root / "bad.parquet")
    assert (first, line, last) == ({"prompt": "x"}, 2, {"prompt": "x"}) and "a cell cannot be read" in str(broken)


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: b"", lambda data: b"{}\n", gzip.compress])
def test_what_is_no_parquet_is_refused_with_the_file(root, parquet, damage):
    path = parquet({"prompt": ["x"], "video": ["x"], "answer": ["x"]})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DatasetError, match=r"t\.parquet: cannot be read as Parquet: "):
        load_tasks("parquet", path, root)


@pytest.mark.thorough
@given(data=st.data())
def test_no_damage_to_a_parquet_file_raises_anything_else(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "damaged.parquet"
    columns = {"prompt": ["ü", "y", None] * 50, "video": [["a"], [], None] * 50, "answer": [1.5, 2.5, None] * 50}
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=40)
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        assert all(isinstance(row, dict | UnusableRow) for _, row in parquet_rows(path))
    except DatasetError as error:
        assert str(path) in str(error)


@pytest.mark.thorough
def test_a_large_table_is_read_a_few_rows_at_a_time(root, parquet):
    text = ["x" * 1000] * 30_000  # 90 MB in memory, little on disk
    path = parquet({"prompt": text, "video": text, "answer": text})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(1 for _ in parquet_table(path, {})) == 30_000
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10 < 60


@given(
    content=st.text('ab,"\n;\t|', max_size=40).map("prompt,video,answer\n".__add__).map(str.encode)
    | st.binary(max_size=60)
)
def test_no_bytes_of_csv_raise_anything_else(content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "bytes.csv"
    path.write_bytes(content)
    try:
        assert all(isinstance(row, dict | UnusableRow) for _, row in csv_table(path, {}))
    except DatasetError as error:
        assert str(path) in str(error)
