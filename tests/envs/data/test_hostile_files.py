"""Whatever bytes an annotation file holds: rows and rejected rows with file, line and reason, or one typed error."""

import random

import pytest

from envs.benchmarks.registry import resolve
from envs.data.dataset import load_tasks, load_traces
from envs.data.rows import DatasetError
from tests.envs.data.mutants import ROWS, damaged_line, mutant, seeds

INNER = (
    "Traceback",
    "RepeatedKey",
    "UnusableRow",
    "DatasetError",
    "<class",
    "object at 0x",
    "JSONDecodeError",
    "NoneType",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    (folder / "clip.mp4").write_bytes(b"not decoded here")
    return folder


def checked(format, path, root):
    """Tasks of a file that may hold anything; None if it is refused as a whole."""
    try:
        loaded = load_tasks(format, path, root)
        if format == "dm_cot":
            load_traces(format, path, root)
    except DatasetError as refusal:
        assert str(path) in str(refusal), refusal
        assert_plain(str(refusal))
        return None
    for row in loaded.rejected:
        assert row.file == str(path) and row.line >= 1 and row.reason
        assert_plain(row.reason)
    assert all(task.video_path == str(root.resolve() / "clip.mp4") for task in loaded.tasks)
    return loaded


def assert_plain(text):
    assert "\n" not in text and len(text) < 1_200
    assert not any(inner in text for inner in INNER), text


@pytest.mark.thorough
@pytest.mark.parametrize("place", range(6))
def test_an_accident_ends_in_rows_and_reasons_or_in_one_refusal(place, root):
    format, suffix, content = list(seeds(root))[place]
    path, rng = root / f"mutant{place}{suffix}", random.Random(place)
    for _ in range(250):
        path.write_bytes(mutant(content, rng))
        checked(format, path, root)


@pytest.mark.parametrize("place", [0, 3])
def test_damage_within_a_line_costs_no_other_row(place, root):
    format, suffix, content = list(seeds(root))[place]
    path, rng = root / f"damaged{place}{suffix}", random.Random(place)
    for _ in range(60):
        damaged, line = damaged_line(content, rng)
        path.write_bytes(damaged)
        loaded = checked(format, path, root)
        kept = {int(task.task_id.rpartition(":")[2]) for task in loaded.tasks}
        assert kept | {line} == set(range(1, ROWS + 1))
        assert {row.line for row in loaded.rejected} <= {line}


@pytest.mark.thorough
def test_an_accident_to_a_benchmarks_file_ends_so_too(root):
    csv = "video_id,question,answer,qid,type,a0,a1,a2,a3,a4\n" + "".join(
        f'clip,"what, {n}?",b,{n},CW,a,b,c,d,e\n' for n in range(ROWS)
    )
    windows = '{"clip": {"location": {' + ", ".join(f'"{n}": [[1, 2], [3, {n}]]' for n in range(ROWS)) + "}}}"
    sentences = '{"clip": {"timestamps": [[0, 1], [1, 3]], "sentences": ["x.", "y."]}, "w": {"timestamps": []}}'
    rng = random.Random(7)
    for number in range(300):
        (root / "test.csv").write_bytes(mutant(csv.encode(), rng) if number % 2 else csv.encode())
        (root / "gsub_test.json").write_bytes(windows.encode() if number % 2 else mutant(windows.encode(), rng))
        (root / "val_1.json").write_bytes(mutant(sentences.encode(), rng))
        for name, file in (("nextgqa", "test.csv"), ("activitynet_mr", "val_1.json")):
            try:
                loaded = resolve(name).read(root / file, root)
            except DatasetError as refusal:
                assert str(root) in str(refusal)
                assert_plain(str(refusal))
            else:
                for row in loaded.rejected:
                    assert_plain(row.reason)
