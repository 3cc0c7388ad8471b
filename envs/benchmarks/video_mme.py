"""Video-MME: multiple choice about short, medium and long videos, without their subtitles."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from envs.benchmarks.benchmark import Benchmark, Example, LoadedExamples, Prediction
from envs.benchmarks.choices import LETTERS, choice_example, letter_among, options_at, without_labels
from envs.benchmarks.metrics import choice_values, chosen_letter
from envs.benchmarks.official import LEAD_INS, chooses, first_letter, official_accuracy, response_of
from envs.benchmarks.published import Published, percent
from envs.benchmarks.reading import each_of, identifier_at, read_examples, rows_of
from envs.data.rows import UnusableRow, as_mapping, shortened, text_at

DURATIONS = ("short", "medium", "long")
_LEAD_INS = (*LEAD_INS, "The best option isThe correct option is", "Best answer:Best option:")  # for want of commas
_FIRST_CAPITAL = "the script takes the first of the capitals A-D in a response, and leaves out those without one"
_YOUTUBE_ID = re.compile(r"[?&]v=([\w-]+)", re.ASCII)


def read(annotation: Path, video_root: Path) -> LoadedExamples:
    """The authors' JSON (a video per row, with "questions") or the data set's table (a question per row).

    Columns: question_id, question, options (or choices), answer (a letter), duration (or duration_category), and
    videoID, or else url, or else video_id. Videos are named by their YouTube id, in the folder, data/ or video/.
    """

    def example(line: int, value: object) -> Example:
        row = as_mapping(value)
        options = without_labels(options_at(row, "options" if "options" in row else "choices"))
        duration = row.get("duration", row.get("duration_category"))
        if duration not in DURATIONS:
            raise UnusableRow(f"'duration' must be short, medium or long, got {shortened(duration)}")
        return choice_example(
            identifier_at(row, "question_id"),
            _video(row),
            video_root,
            ("", "data", "video", "videos"),
            text_at(row, "question"),
            letter_among(text_at(row, "answer"), LETTERS[: len(options)]),
            options=options,
            group=duration,
        )

    return read_examples(each_of(rows_of(annotation), "questions"), video_root, example)


def score(example: Example, prediction: Prediction | None) -> Mapping[str, float]:
    """Accuracy over all questions and by length of video.

    "answered/accuracy" is over the questions whose answer could be read; "official/…" over those in whose answer the
    script finds one of the capitals A to D, the first of which is the choice.
    """
    values = choice_values(example, prediction)
    if chosen_letter(prediction) is not None:
        values["answered/accuracy"] = values["accuracy"]
    letter = None if prediction is None else first_letter(response_of(prediction), "ABCD", _LEAD_INS)
    return values if letter is None else values | official_accuracy(example, chooses(example, letter))


def _video(row: Mapping[str, object]) -> str:
    if "videoID" in row:
        return text_at(row, "videoID")
    in_url = _YOUTUBE_ID.search(text_at(row, "url")) if "url" in row else None
    return in_url[1] if in_url else identifier_at(row, "video_id")


VIDEO_MME = Benchmark(
    name="video_mme",
    source=(
        "Fu et al. 2024, arXiv 2405.21075; evaluation/eval_your_results.py. Accuracy over all 2,700 "
        "questions, and over the 900 each of short, medium and long videos; answered/accuracy: over those "
        "whose answer could be read. official/…: the script's, over the answers with one of the capitals A-D "
        "in them. The setting without subtitles."
    ),
    read=read,
    score=score,
    headline="accuracy",
    published=Published(
        why_not={
            "official/": "",
            "accuracy": _FIRST_CAPITAL,
            "accuracy/": _FIRST_CAPITAL,
            "answered/accuracy": _FIRST_CAPITAL,
        },
        splits={"test": 2700},
        printed={"official/": percent(1)},
    ),
)
