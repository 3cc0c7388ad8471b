"""MotionBench: multiple choice about fine-grained motion (the questions whose answers are public)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from envs.benchmarks.benchmark import Benchmark, Example, LoadedExamples, Prediction
from envs.benchmarks.choices import choice_example, letter_among, written_letters
from envs.benchmarks.metrics import choice_values
from envs.benchmarks.official import chooses, first_character, official_accuracy, response_of
from envs.benchmarks.published import Published, fraction
from envs.benchmarks.reading import each_of, identifier_at, read_examples, rows_of
from envs.data.rows import UnusableRow, as_mapping, text_at

_FIRST_CHARACTER = "the script takes the first character of an answer, and capitals only"
_FOLDERS = ("", "self-collected", "public-dataset", "MotionBench/self-collected", "MotionBench/public-dataset")


def read(annotation: Path, video_root: Path) -> LoadedExamples:
    """The authors' video_info.meta.jsonl: video_path, question_type and qa, a list of uid, question, answer.

    The options are in the question, "A. …" on lines of their own. An answer "NA" is withheld: the row is rejected.
    Videos are video_path, in the folder, self-collected/ or public-dataset/.
    """

    def example(line: int, value: object) -> Example:
        row = as_mapping(value)
        question, answer = text_at(row, "question"), text_at(row, "answer")
        if answer == "NA":
            raise UnusableRow("the answer is withheld: a question of the test split")
        return choice_example(
            identifier_at(row, "uid"),
            text_at(row, "video_path"),
            video_root,
            _FOLDERS,
            question,
            letter_among(answer, written_letters(question)),
            group=text_at(row, "question_type"),
        )

    return read_examples(each_of(rows_of(annotation), "qa"), video_root, example)


def score(example: Example, prediction: Prediction | None) -> Mapping[str, float]:
    """Accuracy over all questions whose answer is public, and within each type.

    "answered/accuracy" is over those that have a prediction. So are "official/answered/accuracy" (the script's
    answered_acc) and "official/accuracy/TYPE", in which the choice is the first character of the answer, or of its
    first brackets, and a lower-case letter is wrong. In "official/accuracy" (acc) every question counts that the file
    has and no prediction answers, the withheld ones among them.
    """
    values = choice_values(example, prediction)
    if prediction is None:
        return values | {"official/accuracy": 0.0}
    official = official_accuracy(example, chooses(example, first_character(response_of(prediction))))
    answered = {"answered/accuracy": values["accuracy"], "official/answered/accuracy": official["official/accuracy"]}
    return values | answered | official


MOTIONBENCH = Benchmark(
    name="motionbench",
    source=(
        "Hong et al. 2025, arXiv 2501.02955; THUDM/MotionBench, compute_accuracy.py. Accuracy over the "
        "questions whose answer is public (4,018 of 8,052) and by type; answered/accuracy: over those with a "
        "prediction. official/…: the script's acc, over all questions of the file, and answered_acc, of the "
        "first character that its answer_util.py leaves."
    ),
    read=read,
    score=score,
    headline="accuracy",
    over_file=("official/accuracy",),
    published=Published(
        why_not={
            "official/answered/accuracy": "",
            "official/accuracy/": "",
            "official/accuracy": "withheld questions count as wrong; published is the accuracy over the public ones",
            "accuracy": _FIRST_CHARACTER,
            "accuracy/": _FIRST_CHARACTER,
            "answered/accuracy": _FIRST_CHARACTER,
        },
        splits={"dev": 4018},
        printed={"official/": fraction},
    ),
)
