"""LongVideoBench: multiple choice that refers to a moment of a long video, without its subtitles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from envs.benchmarks.benchmark import Benchmark, Example, LoadedExamples, Prediction
from envs.benchmarks.choices import LETTERS, choice_example, options_at
from envs.benchmarks.metrics import choice_values
from envs.benchmarks.official import LEAD_INS, chooses, first_letter, official_accuracy, response_of
from envs.benchmarks.published import Published, rounded_fraction
from envs.benchmarks.reading import identifier_at, read_examples, rows_of
from envs.data.rows import UnusableRow, as_mapping, shortened, text_at

_LEAD_INS = (*LEAD_INS, "The best option is", "The correct option is", "Best answer:", "Best option:")
_FIRST_CAPITAL = "the authors take the first of the capitals A-E in a response, and draw one where there is none"
_ABSENT = "N/A"  # an option that the data set's table has only to be as wide as the others


def read(annotation: Path, video_root: Path) -> LoadedExamples:
    """The authors' lvb_val.json: id, video_path, question, candidates (or option0 … option4), correct_choice, ….

    correct_choice counts from 0; the test split (lvb_test_wo_gt.json) has none, and its rows are rejected.
    Videos are video_path, in the folder or in videos/.
    """

    def example(line: int, value: object) -> Example:
        row = as_mapping(value)
        options = options_at(row if "candidates" in row else {"candidates": _from_columns(row)}, "candidates")
        return choice_example(
            identifier_at(row, "id"),
            text_at(row, "video_path"),
            video_root,
            ("", "videos"),
            text_at(row, "question"),
            LETTERS[_place(row, len(options))],
            options=options,
            group=identifier_at(row, "duration_group") if "duration_group" in row else "",
        )

    return read_examples(rows_of(annotation), video_root, example)


def score(example: Example, prediction: Prediction | None) -> Mapping[str, float]:
    """Accuracy over all questions, and by length of video.

    In "official/…" the choice is the first of the capitals A to E in the answer. Where there is none, the authors draw
    an option; here it is worth what the draw is worth on average, 1 / options.
    """
    values = choice_values(example, prediction)
    if prediction is None:
        return values | official_accuracy(example, 0.0)
    letter = first_letter(response_of(prediction), "ABCDE", _LEAD_INS)
    right = 1 / len(example.options) if letter is None else chooses(example, letter)
    return values | official_accuracy(example, right)


def _from_columns(row: Mapping[str, object]) -> list[object]:
    options = [row.get(f"option{number}") for number in range(5)]
    return [option for option in options if option not in (None, _ABSENT)]


def _place(row: Mapping[str, object], options: int) -> int:
    place = row.get("correct_choice")
    if place is None or place == -1:
        raise UnusableRow("no 'correct_choice': the test split's are withheld; use the validation split")
    if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < options:
        raise UnusableRow(f"'correct_choice' must be 0 to {options - 1}, got {shortened(place)}")
    return place


LONGVIDEOBENCH = Benchmark(
    name="longvideobench",
    source=(
        "Wu et al. 2024, arXiv 2407.15754. Accuracy over all questions (1,337 in validation) and by duration "
        "group; an answer that cannot be read is 0. official/…: as the authors' task in lmms-eval scores it "
        "(lmms_eval/tasks/longvideobench/utils.py), which draws an option for such an answer: the average over "
        "the draws. The setting without subtitles."
    ),
    read=read,
    score=score,
    headline="accuracy",
    published=Published(
        why_not={
            "official/": "",
            "accuracy": _FIRST_CAPITAL,
            "accuracy/": _FIRST_CAPITAL,
        },
        splits={"validation": 1337},
        printed={"official/": rounded_fraction(5)},
    ),
)
