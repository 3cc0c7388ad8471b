"""Annotation files that somebody else wrote: any JSON value is a task or a row left out with file, line and reason."""

import json
import resource
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.benchmarks.registry import BUILTIN, resolve
from envs.data.dataset import load_tasks, load_traces
from envs.data.formats import FORMATS
from envs.data.json_rows import json_rows
from envs.data.rows import DatasetError, UnusableRow, as_mapping
from envs.data.text import LONGEST_LINE

pytestmark = pytest.mark.thorough

GOOD = {"prompt": "<video>\nWhich?", "video": "clip.mp4", "answer": "B", "fps": 2, "gt_span_start": 1, "gt_span_end": 2}
KEYS = (
    "prompt",
    "video",
    "answer",
    "fps",
    "gt_span_start",
    "gt_span_end",
    "conversations",
    "from",
    "value",
    "question",
)
OTHERS = (
    "candidates",
    "options",
    "qid",
    "vid",
    "duration",
    "relevant_windows",
    "query",
    "type",
    "video_name",
    "A",
    "id",
)
SCALARS = st.one_of(
    *(st.none(), st.booleans(), st.floats(), st.integers(), st.text(max_size=6)),
    st.sampled_from(["clip.mp4", "../clip.mp4", "a\0b", "B", "1 - 2", "human", "gpt", "\ud800", "clip", 10**30, 1e308]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS + OTHERS), inner, max_size=5),
    max_leaves=12,
)
ROWS = VALUES | st.builds(lambda row, key, value: {**row, key: value}, st.just(GOOD), st.sampled_from(KEYS), VALUES)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    (folder / "clip.mp4").write_bytes(b"not decoded here")
    return folder


def written(rows, root):
    """As JSON lines and as an array."""
    lines, array = root / "rows.jsonl", root / "rows.json"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    array.write_text(json.dumps(rows))
    return lines, array


@settings(max_examples=150)
@given(rows=st.lists(ROWS, max_size=4))
def test_any_json_value_is_a_task_or_a_row_left_out_with_its_line_and_reason(rows, root):
    lines, array = written(rows, root)
    for name in FORMATS:
        for file in (lines, array):
            loaded = load_tasks(name, file, root)
            for rejected in loaded.rejected:
                assert rejected.file == str(file) and rejected.line >= 1
                assert 0 < len(rejected.reason) < 1_000 and "\n" not in rejected.reason
            for task in loaded.tasks:
                assert Path(task.video_path) == root.resolve() / "clip.mp4"
    assert all(trace.replies for trace in load_traces("dm_cot", array, root).traces)


@settings(max_examples=40)
@given(rows=st.lists(ROWS, max_size=3))
def test_any_json_value_is_an_example_of_a_benchmark_or_left_out(rows, root):
    for name in BUILTIN:
        for file in written(rows, root):
            try:
                loaded = resolve(name).read(file, root)
            except DatasetError as refusal:
                assert str(refusal)
            else:
                assert all(rejected.reason for rejected in loaded.rejected)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("[" * 100_000 + "]" * 100_000, "not JSON"),
        ('{"a":' * 100_000, "not JSON"),
        ('{"fps": ' + "9" * 5_000 + "}", "not JSON"),
        (
            json.dumps(GOOD).replace('"fps": 2', '"fps": ' + "9" * 400),
            "'fps' must be a finite number, got a huge integer",
        ),
        (json.dumps(GOOD).replace('"fps": 2', '"fps": NaN'), "'fps' must be a finite number, got nan"),
        (json.dumps(GOOD).replace('"fps": 2', '"fps": 1e999'), "'fps' must be a finite number, got inf"),
        (json.dumps(GOOD)[:-1] + ', "answer": "C"}', "the key 'answer' stands twice"),
        (json.dumps(GOOD | {"prompt": "x" * 1_000_000}), "'prompt' is longer than 100,000 characters"),
        (json.dumps(GOOD | {"answer": "?" * 90_000}), "says nothing"),
        (json.dumps(GOOD | {"answer": "\ud800"}), "'answer' holds half a Unicode pair"),
        (json.dumps(GOOD | {"video": "clip\0.mp4"}), "its name holds"),
        (json.dumps(GOOD | {"prompt": ["Which?"]}), "'prompt' must be a text"),
        (json.dumps(GOOD | {"prompt": True}), "'prompt' must be a text"),
    ],
)
def test_a_hostile_row_is_left_out_and_its_neighbours_stay(row, reason, root):
    path = root / "hostile.jsonl"
    path.write_text("\n".join([json.dumps(GOOD), row, json.dumps(GOOD)]))
    loaded = load_tasks("dm_rl", path, root)
    assert [task.task_id for task in loaded.tasks] == ["hostile:1", "hostile:3"]
    (rejected,) = loaded.rejected
    assert rejected.line == 2 and reason in rejected.reason and len(rejected.reason) < 600


def test_a_line_of_100_megabytes_is_left_out_without_being_kept(root):
    path = root / "endless.jsonl"
    with path.open("wb") as file:
        file.write(json.dumps(GOOD).encode() + b"\n")
        for _ in range(100):
            file.write(b"x" * 2**20)
        file.write(b"\n" + json.dumps(GOOD).encode())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = list(json_rows(path))
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
    assert [line for line, _ in rows] == [1, 2, 3] and isinstance(rows[1][1], UnusableRow)
    assert f"longer than {LONGEST_LINE:,} bytes" in str(rows[1][1])
    assert grown_mib < 64  # a line and its buffer, not a hundred


def test_in_an_array_too_a_repeated_key_costs_only_its_row(root):
    path = root / "array.json"
    path.write_text('[{"a": 1},\n{"a": 1, "a": 2},\n{"a": 3}]')
    (_, first), (line, repeated), (_, last) = json_rows(path)
    assert (first, line, last) == ({"a": 1}, 2, {"a": 3})
    with pytest.raises(UnusableRow, match="the key 'a' stands twice"):
        as_mapping(repeated)


def test_a_file_too_large_to_be_read_as_a_whole_is_refused(root, monkeypatch):
    monkeypatch.setattr("envs.data.text.LARGEST_FILE", 10)
    path = root / "large.json"
    path.write_text("[" + " " * 20 + "]")
    with pytest.raises(DatasetError, match=r"large\.json: larger than 10 bytes"):
        list(json_rows(path))
