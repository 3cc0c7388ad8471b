"""NExT-GQA: answer a question about a video, and look where the answer is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from envs.benchmarks.benchmark import Benchmark, Example, LoadedExamples, Prediction
from envs.benchmarks.choices import choice_example, letter_of_text, text_or_blank
from envs.benchmarks.metrics import best_iop, best_iou, grounded_unparsed, is_right, looked_at
from envs.benchmarks.published import Published, percent, percent_of_mean
from envs.benchmarks.reading import read_examples, require_file, rows_of, windows_at
from envs.data.json_rows import json_object
from envs.data.rows import RepeatedKey, UnusableRow, as_mapping, shortened, text_at

OPTIONS = ("a0", "a1", "a2", "a3", "a4")


def read(annotation: Path, video_root: Path) -> LoadedExamples:
    """The authors' test.csv or val.csv, with gsub_test.json or gsub_val.json beside it.

    Columns: video_id, question, answer (an option's text), qid, type, a0 … a4. Of options that share the answer's text
    the first is right, as in the authors' loader; where none is the answer every prediction is wrong, as there.
    Windows stay as annotated; some begin at -0.1.
    Videos are video_id.mp4, or where map_vid_vidorID.json (beside the annotations) says.
    """
    require_file(annotation)
    windows_file = annotation.with_name(f"gsub_{annotation.stem}.json")
    require_file(windows_file, f"; the evidence windows of {annotation.name} belong beside it")
    evidence, video_of = json_object(windows_file), _video_map(annotation)

    left_out: list[str] = []

    def example(line: int, value: object) -> Example:
        row = as_mapping(value)
        video, question_id = text_at(row, "video_id"), text_at(row, "qid")
        options = [text_or_blank(row, key) for key in OPTIONS]
        return choice_example(
            f"{video}_{question_id}",
            str(video_of.get(video, video)),
            video_root,
            ("", "NExTVideo"),
            text_at(row, "question"),
            letter_of_text(text_or_blank(row, "answer"), options),
            options=options,
            windows=windows_at(_location(evidence, video, question_id, windows_file), question_id, left_out),
            group=text_at(row, "type"),
        )

    return read_examples(rows_of(annotation), video_root, example, left_out)


def score(example: Example, prediction: Prediction | None) -> Mapping[str, float]:
    """The official values, of the last window that was looked at, over all questions.

    "predicted/…" are the same over the questions that have a window: the official script skips the others.
    """
    window, right = looked_at(prediction), is_right(example, prediction)
    iou, iop = best_iou(window, example.windows), best_iop(window, example.windows)
    grounded = {
        "acc_gqa": float(right and iop >= 0.5),
        "miop": iop,
        "iop@0.3": float(iop >= 0.3),
        "iop@0.5": float(iop >= 0.5),
        "miou": iou,
        "iou@0.3": float(iou >= 0.3),
        "iou@0.5": float(iou >= 0.5),
    }
    official = {} if window is None else {f"predicted/{name}": value for name, value in grounded.items()}
    return {"acc_qa": float(right), **grounded, **official, **grounded_unparsed(prediction)}


def _video_map(annotation: Path) -> Mapping[str, object]:
    mapping = annotation.with_name("map_vid_vidorID.json")
    return json_object(mapping) if mapping.is_file() else {}


def _location(evidence: Mapping[str, object], video: str, question_id: str, file: Path) -> Mapping[str, object]:
    of_video = evidence.get(video)
    location = of_video.get("location") if isinstance(of_video, dict) else None
    for found in (of_video, location):
        if isinstance(found, RepeatedKey):
            raise UnusableRow(f"{file.name}: of video {video}, the key {shortened(found.key)} stands twice")
    if not isinstance(location, dict) or question_id not in location:
        raise UnusableRow(f"{file.name} has no windows for question {question_id} of video {video}")
    return location


NEXTGQA = Benchmark(
    name="nextgqa",
    source=(
        "Xiao et al. 2023, arXiv 2309.01327; doc-doc/NExT-GQA, eval_ground.py. Per question the largest IoU "
        "and the largest IoP over its windows; Acc@GQA: right and IoP >= .5. Over all questions; predicted/…: "
        "over those with a window, as the script."
    ),
    read=read,
    score=score,
    headline="acc_gqa",
    published=Published(
        why_not={
            "acc_qa": "",
            "predicted/": "",
            **dict.fromkeys(
                ("acc_gqa", "miop", "iop@0.3", "iop@0.5", "miou", "iou@0.3", "iou@0.5"),
                "over all questions; the script leaves out those without a window",
            ),
        },
        splits={"test": 5553, "val": 3358},
        printed={"acc_qa": percent(2), "predicted/": percent_of_mean(1)},
    ),
)
