"""FAVOR-Bench: multiple choice about fine-grained motion (the close-ended tasks)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from envs.benchmarks.benchmark import Benchmark, Example, LoadedExamples, Prediction
from envs.benchmarks.choices import LETTERS, choice_example, letter_of_text, options_at, text_or_blank
from envs.benchmarks.metrics import choice_values
from envs.benchmarks.official import official_accuracy, response_of
from envs.benchmarks.published import Published, percent_of_mean
from envs.benchmarks.reading import each_of, identifier_at, read_examples, rows_of
from envs.data.rows import as_mapping, text_at

_ASKED = "the script shows the options without letters and looks for the right one's text; here a letter is asked for"


def read(annotation: Path, video_root: Path) -> LoadedExamples:
    """The authors' video_perspective.json (a video per row, with "questions") or question_perspective.json.

    Rows: video_name, question, options, correct_answer (an option's text), task_type, and question_key in the second
    file. Of options that share the answer's text the first is right. Videos are video_name, with or without .mp4.
    """

    def example(line: int, value: object) -> Example:
        row = as_mapping(value)
        video, options = text_at(row, "video_name"), options_at(row, "options")
        return choice_example(
            f"{video}:{row['place']}" if "place" in row else identifier_at(row, "question_key"),
            video,
            video_root,
            ("", "videos", "FAVOR-Bench", "videos/FAVOR-Bench"),
            text_at(row, "question"),
            letter_of_text(text_or_blank(row, "correct_answer"), options),
            options=options,
            group=text_at(row, "task_type"),
        )

    return read_examples(each_of(rows_of(annotation), "questions"), video_root, example)


def score(example: Example, prediction: Prediction | None) -> Mapping[str, float]:
    """Accuracy over all questions, and by task.

    In "official/…" an answer is right if the right option's text is in it, in either case, and that of no option which
    has that text as a part. In "official/accuracy" every question counts that the file has and no prediction answers.
    """
    right = float(example.answerable and prediction is not None and _names_the_right_text(example, prediction))
    return choice_values(example, prediction) | official_accuracy(example, right)


def _names_the_right_text(example: Example, prediction: Prediction) -> bool:
    right, said = example.options[LETTERS.index(example.task.answer)], response_of(prediction).lower()
    longer = [option for option in example.options if option != right and right in option]
    return right.lower() in said and not any(option.lower() in said for option in longer)


FAVOR_BENCH = Benchmark(
    name="favor_bench",
    source=(
        "Tu et al. 2025, arXiv 2503.14935; FAVOR-Bench/FAVOR-Bench, inference_qa_qwen.py, analyze_qa.py. "
        "Accuracy over all questions (8,184) and by task, of the letter. official/…: the script's, which looks "
        "for the right option's text."
    ),
    read=read,
    score=score,
    headline="accuracy",
    over_file=("official/accuracy",),
    published=Published(
        why_not={"official/": _ASKED, "accuracy": _ASKED, "accuracy/": _ASKED},
        splits={"test": 8184},
        printed={"official/": percent_of_mean(2, trimmed=True)},
    ),
)
