"""MLVU: seven multiple-choice tasks about long videos (MLVU-Dev; the test split's answers are withheld)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from envs.benchmarks.benchmark import Benchmark, Example, LoadedExamples, Prediction
from envs.benchmarks.choices import choice_example, letter_of_text, options_at, with_options
from envs.benchmarks.metrics import choice_values
from envs.benchmarks.reading import read_examples, rows_of
from envs.data.rows import DatasetError, UnusableRow, as_mapping, shortened, text_at

TASKS = ("plotQA", "needle", "ego", "count", "order", "anomaly_reco", "topic_reasoning")
_ALSO_CALLED = {"findNeedle": "needle"}  # the same task in the file's rows


def read(annotation: Path, video_root: Path) -> LoadedExamples:
    """The authors' folder json/ with 1_plotQA.json … 7_topic_reasoning.json, or one of these files.

    Rows: video, question, candidates, answer (a candidate's text), question_type. Of candidates that share the answer's
    text the last is right, as in the authors' script. The two generation tasks (8_, 9_) are not read: a judge model
    scores them. Videos are in the folder, in one of the task's name, or in video/ and the task's name (video/1_plotQA).

    Raises:
        DatasetError: a file of the seven is not there: M-Avg is the mean over all.
    """

    def example(line: int, value: object) -> Example:
        file, number, row = value
        try:
            if isinstance(row, UnusableRow):
                raise row
            return _example(file, number, as_mapping(row), video_root)
        except UnusableRow as error:
            raise UnusableRow(f"{file.name}: {error}") from error

    return read_examples(_rows(annotation), video_root, example)


def score(example: Example, prediction: Prediction | None) -> Mapping[str, float]:
    """M-Avg (the mean over tasks of the accuracy within each), accuracy over all questions, and that of each task."""
    values = choice_values(example, prediction)
    return {"m_avg": values["accuracy"]} | values


def _rows(annotation: Path) -> Iterator[tuple[int, object]]:
    for file in _files(annotation) if annotation.is_dir() else [annotation]:
        for number, (line, row) in enumerate(rows_of(file), start=1):
            yield line, (file, number, row)


def _files(folder: Path) -> list[Path]:
    files = {path.stem.partition("_")[2]: path for path in sorted(folder.glob("*.json"))}
    if missing := [task for task in TASKS if task not in files]:
        raise DatasetError(f"{folder}: M-Avg is the mean over seven tasks; there is no file *_{missing[0]}.json")
    return [files[task] for task in TASKS]


def _example(file: Path, number: int, row: Mapping[str, object], video_root: Path) -> Example:
    task = _ALSO_CALLED.get(text_at(row, "question_type"), text_at(row, "question_type"))
    if task not in TASKS:
        raise UnusableRow(f"{shortened(task)} is none of the multiple-choice tasks {', '.join(TASKS)}")
    options = options_at(row, "candidates")
    return choice_example(
        f"{file.stem}:{number}",
        text_at(row, "video"),
        video_root,
        ("", file.stem, f"video/{file.stem}"),
        with_options(text_at(row, "question"), options),
        letter_of_text(text_at(row, "answer"), options, last=True),
        group=task,
    )


MLVU = Benchmark(
    name="mlvu",
    source=(
        "Zhou et al. 2024, arXiv 2406.04264; JUNJIE99/MLVU, choice_bench.py. M-Avg: the mean over seven tasks "
        "of the accuracy within each; accuracy: over all questions (the script's Avg)."
    ),
    read=read,
    score=score,
    headline="m_avg",
    over_groups=("m_avg",),
)
