"""From the authors' files to examples, the way all benchmarks share: a row is kept, or reported with its reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from envs.answers.windows import spell_span
from envs.benchmarks.benchmark import Example, LoadedExamples, RejectedExample
from envs.data.csv_rows import csv_rows
from envs.data.formats import make_task, moment_question
from envs.data.json_rows import json_rows, rows_within
from envs.data.parquet_rows import parquet_rows
from envs.data.rows import DatasetError, UnusableRow, forward, missing_medium, number_at, one_line, shortened
from envs.data.videos import video_file
from rl.trajectory import AnswerKind, TimeSpan

READERS: Mapping[str, Callable[[Path], Iterator[tuple[int, object]]]] = {
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), json_rows),
    **{".csv": csv_rows, ".tsv": partial(csv_rows, delimiter="\t"), ".parquet": parquet_rows},
}

Rows = Iterable[tuple[int, object]]


def rows_of(annotation: Path) -> Iterator[tuple[int, object]]:
    """The rows of a JSON, CSV or Parquet file, by the file's suffix; JSON and CSV may be packed (.gz).

    Raises:
        DatasetError: there is no such file, or it is of another kind.
    """
    require_file(annotation)
    name = annotation.name.lower().removesuffix(".gz")
    reader = next((reader for suffix, reader in READERS.items() if name.endswith(suffix)), None)
    if reader is None:
        raise DatasetError(f"{annotation}: expected one of {', '.join(READERS)}")
    return reader(annotation)


def require_file(annotation: Path, remedy: str = "") -> None:
    """Refuse an annotation file that is not there; `remedy` says what to do about it."""
    if not annotation.is_file():
        raise DatasetError(f"{annotation}: no such annotation file{remedy}")


def each_of(rows: Rows, key: str) -> Iterator[tuple[int, object]]:
    """Rows per video, with the questions in a list under `key`, to rows per question.

    A question's row has the video's values, its own over them, and its "place" in the list from 0. A row without the
    list is a question already, as in mirrors that flatten the authors' file.
    """
    for line, value in rows:
        questions = value.get(key) if isinstance(value, dict) else None
        if questions is None:
            yield line, value
        elif not isinstance(questions, list) or not questions:
            yield (
                line,
                UnusableRow(f"{key!r} must be a list of questions, not empty, got {shortened(questions)}"),
            )
        else:
            shared = {name: of_video for name, of_video in value.items() if name != key}
            for place, question in enumerate(questions):
                yield line, {**shared, "place": place, **question} if isinstance(question, dict) else question


def read_examples(
    rows: Rows, video_root: Path, convert: Callable[[int, object], Example], left_out: list[str] | None = None
) -> LoadedExamples:
    """Convert every row; what cannot be used, or repeats an id, is reported.

    Args:
        left_out: where `convert` appends why windows of its example are left out.
    Raises:
        DatasetError: there is no such folder of videos.
    """
    if not video_root.is_dir():
        raise DatasetError(f"{video_root}: no such folder of videos")
    kept: list[Example] = []
    rejected: list[RejectedExample] = []
    line_of: dict[str, int] = {}
    reasons, noted = [] if left_out is None else left_out, []
    value: object = None
    for line, value in rows:
        reasons.clear()
        try:
            if isinstance(value, UnusableRow):
                raise value
            example = convert(line, value)
            task_id = example.task.task_id
            if task_id in line_of:
                raise UnusableRow(f"the id {task_id!r} belongs to line {line_of[task_id]} already")
        except UnusableRow as error:
            rejected.append(RejectedExample(line, one_line(error), missing_medium(error)))
            continue
        line_of[task_id] = line
        kept.append(example)
        noted += [RejectedExample(line, reason) for reason in reasons]
    if len(rejected) == 1 and not kept and (advice := rows_within(value)):
        rejected = [RejectedExample(rejected[0].line, f"{advice} (as a row: {rejected[0].reason})")]
    return LoadedExamples(tuple(kept), tuple(rejected), tuple(noted))


def identifier_at(row: Mapping[str, object], key: str) -> str:
    """An id, which some authors write as a number."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
        raise UnusableRow(f"{key!r} must be an id, got {shortened(value)}")
    return str(value).strip()


def windows_at(row: Mapping[str, object], key: str, left_out: list[str]) -> tuple[TimeSpan, ...]:
    """The windows [[start, end], …] in seconds, as annotated, also outside the clip and also points.

    One that cannot be read does not cost the others: the authors' scripts give it an overlap of 0, as if it were not
    there.

    Args:
        left_out: takes why others were.
    """
    pairs = row.get(key)
    if not isinstance(pairs, list) or not pairs:
        raise UnusableRow(f"{key!r} must be a list of windows that is not empty, got {shortened(pairs)}")
    windows, faults = [], []
    for pair in pairs:
        try:
            windows.append(window_from(pair, points=True))
        except UnusableRow as fault:
            faults.append(fault)
    if not windows:
        raise faults[0]
    left_out += map(str, faults)
    return tuple(windows)


def window_from(pair: object, *, points: bool = False) -> TimeSpan:
    """One window [start, end], forward in time.

    Args:
        points: a window may also be a point. No window overlaps it, but its question counts.
    """
    if not isinstance(pair, list) or len(pair) != 2:
        raise UnusableRow(f"a window must be [start, end], got {shortened(pair)}")
    edges = {"start": pair[0], "end": pair[1]}
    start_s, end_s = number_at(edges, "start"), number_at(edges, "end")
    if start_s is None or end_s is None or end_s < start_s or (end_s == start_s and not points):
        raise UnusableRow(f"the window {shortened(pair)} is reversed, empty or not complete")
    return TimeSpan(start_s, end_s)


def single_evidence(windows: Sequence[TimeSpan]) -> tuple[TimeSpan, ...]:
    """A task's evidence: the example's only window, from 0 on; of several, or a point, none: the metric takes them."""
    if len(windows) != 1 or windows[0].length_s <= 0 or windows[0].end_s <= 0:
        return ()
    return (TimeSpan(max(windows[0].start_s, 0.0), windows[0].end_s),)


def moment_example(
    task_id: str, video: str, root: Path, folders: tuple[str, ...], sentence: str, windows: Sequence[TimeSpan]
) -> Example:
    """A sentence whose moment is to be found.

    The reference answer is the first window that lies forward in the video; the metric takes all, as annotated.
    """
    reference = next((one for one in windows if one.start_s >= 0 and one.length_s > 0), windows[0])
    forward(reference, "the window")
    path, question = video_file(video, root, folders), moment_question(sentence)
    answer, evidence = spell_span(reference), single_evidence(windows)
    task = make_task(task_id, path, root, question, answer, evidence, None, kind=AnswerKind.SPAN)
    return Example(task, tuple(windows))
