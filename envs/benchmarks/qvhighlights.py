"""QVHighlights: find the moment that a query describes; a query may have several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from envs.benchmarks.benchmark import Benchmark, Example, LoadedExamples, Prediction
from envs.benchmarks.metrics import moment_values
from envs.benchmarks.published import Published, percent_of_mean
from envs.benchmarks.reading import identifier_at, moment_example, read_examples, rows_of, windows_at
from envs.data.rows import UnusableRow, as_mapping, text_at


def read(annotation: Path, video_root: Path) -> LoadedExamples:
    """The authors' highlight_val_release.jsonl: qid, query, duration, vid, relevant_windows, …; videos vid.mp4.

    The test split has no windows; its rows are rejected.
    """

    left_out: list[str] = []

    def example(line: int, value: object) -> Example:
        row = as_mapping(value)
        if "relevant_windows" not in row:
            raise UnusableRow("no 'relevant_windows': the test split's are withheld; use the validation split")
        windows = windows_at(row, "relevant_windows", left_out)
        folders = ("", "videos")
        return moment_example(
            identifier_at(row, "qid"), text_at(row, "vid"), video_root, folders, text_at(row, "query"), windows
        )

    return read_examples(rows_of(annotation), video_root, example, left_out)


def score(example: Example, prediction: Prediction | None) -> Mapping[str, float]:
    """R1 of the one window that the answer names against the best matching of the annotated ones; mIoU is ours.

    The official mAP is over a ranking of windows with scores. An answer is one window: it has no mAP.
    """
    return moment_values(example, prediction, thresholds=(0.5, 0.7))


QVHIGHLIGHTS = Benchmark(
    name="qvhighlights",
    source=(
        "Lei et al. 2021, arXiv 2107.09609; jayleicn/moment_detr, standalone_eval/eval.py. R1@{.5, .7} over "
        "all queries; the official script refuses a submission in which one is missing, here it is 0."
    ),
    read=read,
    score=score,
    headline="r1@0.5",
    published=Published(
        why_not={"r1@0.5": "", "r1@0.7": "", "miou": "the script prints none"},
        splits={"val": 1550},
        printed=dict.fromkeys(("r1@0.5", "r1@0.7"), percent_of_mean(2, trimmed=True)),
    ),
)
