"""LVBench: multiple choice about videos of up to two hours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from envs.benchmarks.benchmark import Benchmark, Example, LoadedExamples, Prediction
from envs.benchmarks.choices import choice_example, letter_among, written_letters
from envs.benchmarks.metrics import GROUP_SEPARATOR, choice_values
from envs.benchmarks.official import chooses, first_character, official_accuracy, response_of
from envs.benchmarks.published import Published, fraction
from envs.benchmarks.reading import each_of, identifier_at, read_examples, rows_of
from envs.data.rows import as_mapping, text_at
from rl.trajectory import TimeSpan

_FIRST_CHARACTER = "the script takes the first character of an answer, and capitals only"
_CLOCK = r"(?:(\d{1,3}):)?(\d{1,3}):(\d{1,2}(?:\.\d{1,3})?)"
_REFERENCE = re.compile(rf"\s*{_CLOCK}\s*-\s*{_CLOCK}\s*", re.ASCII)


def read(annotation: Path, video_root: Path) -> LoadedExamples:
    """The authors' video_info.meta.jsonl: key (a YouTube id) and qa, a list of uid, question, answer, question_type, ….

    The options are in the question, "(A) …" on lines of their own. Videos are key.mp4.
    """

    def example(line: int, value: object) -> Example:
        row = as_mapping(value)
        question, window = text_at(row, "question"), _window(row.get("time_reference"))
        types = row.get("question_type")
        names = [text_at({"question_type": name}, "question_type") for name in types] if isinstance(types, list) else []
        return choice_example(
            identifier_at(row, "uid"),
            text_at(row, "key"),
            video_root,
            ("", "videos", "all_videos"),
            question,
            letter_among(text_at(row, "answer"), written_letters(question)),
            windows=() if window is None else (window,),
            group=GROUP_SEPARATOR.join(names),
        )

    return read_examples(each_of(rows_of(annotation), "qa"), video_root, example)


def score(example: Example, prediction: Prediction | None) -> Mapping[str, float]:
    """Accuracy over all questions, and over those of each type; a question may be of several.

    "answered/accuracy" is over the questions that have a prediction. So are "official/…", in which the choice is the
    first character of the answer, or of its first brackets, and a lower-case letter is wrong.
    """
    values = choice_values(example, prediction)
    if prediction is None:
        return values
    official = official_accuracy(example, chooses(example, first_character(response_of(prediction))))
    return values | {"answered/accuracy": values["accuracy"]} | official


def _window(reference: object) -> TimeSpan | None:
    """From "00:15-00:19" or "1:02:03-1:02:10". It is no part of the metric: anything else is no window."""
    found = _REFERENCE.fullmatch(reference) if isinstance(reference, str) else None
    if found is None:
        return None
    hours, minutes, seconds, to_hours, to_minutes, to_seconds = (float(part or 0) for part in found.groups())
    window = TimeSpan(hours * 3600 + minutes * 60 + seconds, to_hours * 3600 + to_minutes * 60 + to_seconds)
    return window if window.length_s > 0 else None


LVBENCH = Benchmark(
    name="lvbench",
    source=(
        "Wang et al. 2024, arXiv 2406.08035; THUDM/LVBench, compute_accuracy.py. Accuracy over all 1,549 "
        "questions and by type; answered/accuracy: over those with a prediction. official/…: the script's, over "
        "those with a prediction, of the first character that its answer_util.py leaves."
    ),
    read=read,
    score=score,
    headline="accuracy",
    published=Published(
        why_not={
            "official/": "",
            "accuracy": _FIRST_CHARACTER,
            "accuracy/": _FIRST_CHARACTER,
            "answered/accuracy": _FIRST_CHARACTER,
        },
        splits={"test": 1549},
        printed={"official/": fraction},
    ),
)
