"""ReXTime: answer a question about cause and effect across a video, and look where the answer is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from envs.benchmarks.benchmark import Benchmark, Example, LoadedExamples, Prediction
from envs.benchmarks.choices import LETTERS, choice_example, letter_among, options_at
from envs.benchmarks.metrics import best_iou, grounded_unparsed, is_right, looked_at, recall_values
from envs.benchmarks.published import Published, fraction, percent_of_mean
from envs.benchmarks.reading import identifier_at, read_examples, rows_of, window_from, windows_at
from envs.data.rows import UnusableRow, as_mapping, text_at


def read(annotation: Path, video_root: Path) -> LoadedExamples:
    """The data set's rextime_val.json: qid, vid, question, options, ans (a letter), span [s, e] or relevant_windows.

    The evaluation's rextime_val.jsonl has no options, the test split no answers: such rows are rejected. A window may
    be a point (two are): no look overlaps it, and its question counts.
    Videos are vid.mp4, of ActivityNet and of QVHighlights, in one folder or in the two that the authors name.
    """

    left_out: list[str] = []

    def example(line: int, value: object) -> Example:
        row = as_mapping(value)
        if "options" not in row:
            raise UnusableRow("no 'options': the evaluation's jsonl has none; read rextime_val.json of the data set")
        if "ans" not in row:
            raise UnusableRow("no 'ans': the test split's answers are withheld; use the validation split")
        options = options_at(row, "options")
        if "relevant_windows" in row:
            windows = windows_at(row, "relevant_windows", left_out)
        else:
            windows = (window_from(row.get("span"), points=True),)
        return choice_example(
            identifier_at(row, "qid"),
            text_at(row, "vid"),
            video_root,
            ("", "videos", "Anet_videos_15fps_short256"),
            text_at(row, "question"),
            letter_among(text_at(row, "ans"), LETTERS[: len(options)]),
            options=options,
            windows=windows,
            group=text_at(row, "category") if "category" in row else "",
        )

    return read_examples(rows_of(annotation), video_root, example, left_out)


def score(example: Example, prediction: Prediction | None) -> Mapping[str, float]:
    """Accuracy of the answer, R1 and mIoU of the last window that was looked at, and both at once."""
    right, iou = is_right(example, prediction), best_iou(looked_at(prediction), example.windows)
    return {
        "acc_qa": float(right),
        "acc_gqa@0.5": float(right and iou >= 0.5),
        **recall_values(iou, (0.3, 0.5)),
        **grounded_unparsed(prediction),
    }


REXTIME = Benchmark(
    name="rextime",
    source=(
        "Chen et al. 2024, arXiv 2406.19392; ReXTime/ReXTime, rextime_eval.py. Accuracy, R1@{.3, .5}, mIoU, "
        "and right with IoU >= .5, over all questions; the official script refuses a submission in which one "
        "is missing."
    ),
    read=read,
    score=score,
    headline="acc_gqa@0.5",
    published=Published(
        why_not=dict.fromkeys(("acc_qa", "acc_gqa@0.5", "r1@0.3", "r1@0.5", "miou"), ""),
        splits={"val": 921},
        printed={
            **dict.fromkeys(("acc_qa", "acc_gqa@0.5"), fraction),
            **dict.fromkeys(("r1@0.3", "r1@0.5", "miou"), percent_of_mean(2, trimmed=True)),
        },
    ),
)
