"""Annotation files in the authors' formats, hand-made predictions, and the means a reader of a table would take."""

import json
from statistics import fmean

import pytest

from envs.benchmarks.benchmark import Prediction
from rl.trajectory import TimeSpan


@pytest.fixture
def videos(tmp_path):
    """A folder with these (empty) videos; readers look for files, not into them."""

    def make(*names):
        root = tmp_path / "root"
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        return root

    return make


@pytest.fixture
def write(tmp_path):
    """A file with this text, or these values: a JSON array, an object, or lines, by its suffix."""

    def make(name, *values):
        path = tmp_path / "annotations" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".jsonl":
            path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
        else:
            (value,) = values
            path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
        return path

    return make


@pytest.fixture
def says():
    """A prediction: the answer's body, and the windows that were looked at."""

    def make(answer, *windows):
        return Prediction(answer, tuple(TimeSpan(*window) for window in windows))

    return make


@pytest.fixture
def means():
    """The table of a benchmark by plain loops: what `predictions` lacks is missing."""

    def make(benchmark, examples, predictions):
        values = [
            (example.group, benchmark.score(example, predictions.get(example.task.task_id))) for example in examples
        ]
        table = {}
        for name in sorted({name for _, of_one in values for name in of_one}):
            present = [(group, of_one[name]) for group, of_one in values if name in of_one]
            if name in benchmark.over_groups:
                groups = sorted({group for group, _ in present})
                table[name] = fmean(fmean(value for of, value in present if of == group) for group in groups)
            else:
                table[name] = fmean(value for _, value in present)
        return table

    return make


@pytest.fixture
def reasons():
    """Where and why rows were left out."""
    return lambda loaded: [(row.line, row.reason) for row in loaded.rejected]
