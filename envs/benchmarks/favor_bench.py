"""FAVOR-Bench: multiple choice about fine-grained motion (the close-ended tasks)."""

from __future__ import annotations

from pathlib import Path

from envs.benchmarks.benchmark import Benchmark, Example, LoadedExamples
from envs.benchmarks.choices import choice_example, letter_of_text, options_at, with_options
from envs.benchmarks.metrics import choice_values
from envs.benchmarks.reading import each_of, identifier_at, read_examples, rows_of
from envs.data.rows import as_mapping, text_at


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
            with_options(text_at(row, "question"), options),
            letter_of_text(text_at(row, "correct_answer"), options),
            group=text_at(row, "task_type"),
        )

    return read_examples(each_of(rows_of(annotation), "questions"), video_root, example)


FAVOR_BENCH = Benchmark(
    name="favor_bench",
    source=(
        "Tu et al. 2025, arXiv 2503.14935; FAVOR-Bench/FAVOR-Bench, inference_qa_qwen.py, analyze_qa.py. "
        "Accuracy over all questions (8,184) and by task. The script looks for the right option's text in the "
        "output; here the answer is a letter."
    ),
    read=read,
    score=choice_values,
    headline="accuracy",
)
