"""MLVU: seven multiple-choice tasks about long videos (MLVU-Dev; the test split's answers are withheld)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from envs.benchmarks.benchmark import Benchmark, Example, LoadedExamples, Prediction
from envs.benchmarks.choices import choice_example, letter_of_text, options_at, text_or_blank
from envs.benchmarks.metrics import choice_values
from envs.benchmarks.official import before_bracket, chooses, official_accuracy, response_of
from envs.benchmarks.published import Published, full_percent, percent_over_groups
from envs.benchmarks.reading import read_examples, rows_of
from envs.data.rows import DatasetError, UnusableRow, as_mapping, shortened, text_at

TASKS = ("plotQA", "needle", "ego", "count", "order", "anomaly_reco", "topic_reasoning")
_AS_PRINTED = ("count", "ego", "needle", "order", "plotQA", "anomaly_reco", "topic_reasoning")  # the script's order
_BARE_CAPITAL = "the script takes a capital letter alone, or the one before the first closing bracket"
_ALSO_CALLED = {"findNeedle": "needle"}  # the same task in the file's rows


def read(annotation: Path, video_root: Path) -> LoadedExamples:
    """The authors' folder json/ with 1_plotQA.json … 7_topic_reasoning.json, or one of these files.

    Rows: video, question, candidates, answer (a candidate's text), question_type. Of candidates that share the answer's
    text the last is right, as in the authors' script; a blank one is a candidate too, and where none is the answer
    every prediction is wrong. The two generation tasks (8_, 9_) are not read: a judge model scores them. Videos are in
    the folder, in one of the task's name, or in video/ and the task's name (video/1_plotQA).

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
    """M-Avg (the mean over tasks of the accuracy within each), accuracy over all questions, and that of each task.

    "official/…" are the script's: the answer has to be the capital letter alone, or to have it before its first closing
    bracket. The script has no missing predictions; here they are 0.
    """
    values = choice_values(example, prediction)
    right = 0.0 if prediction is None else chooses(example, before_bracket(response_of(prediction)))
    official = official_accuracy(example, right)
    official["official/m_avg"] = official.pop("official/accuracy")  # it prints no mean over all questions
    return {"m_avg": values["accuracy"]} | values | official


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
        text_or_blank(row, "question"),
        letter_of_text(text_or_blank(row, "answer"), options, last=True),
        options=options,
        group=task,
    )


MLVU = Benchmark(
    name="mlvu",
    source=(
        "Zhou et al. 2024, arXiv 2406.04264; JUNJIE99/MLVU, multiple_choice_evaluation/choice_bench.py. M-Avg "
        "(the script's Avg): the mean over seven tasks of the accuracy within each, 2,175 questions in all; "
        "accuracy: over all questions. official/…: letters read as the script does."
    ),
    read=read,
    score=score,
    headline="m_avg",
    over_groups=("m_avg", "official/m_avg"),
    published=Published(
        why_not={
            "official/": "",
            "m_avg": _BARE_CAPITAL,
            "accuracy/": _BARE_CAPITAL,
            "accuracy": "over all questions; published is the mean over the seven tasks",
        },
        splits={"dev": 2175},
        printed={"official/m_avg": percent_over_groups(_AS_PRINTED), "official/accuracy/": full_percent},
    ),
)
