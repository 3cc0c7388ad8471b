"""Annotation files to tasks and supervised traces, and which tasks a step trains on.

A row that cannot be used is never a crash and never silently gone: it is reported with file, line and reason.

Legend: n tasks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from envs.answers.windows import read_span, spell_span
from envs.data.formats import RetrievalTrace, RowFormat, left_out_of
from envs.data.hub_copy import WHOLE, Part
from envs.data.json_rows import rows_within
from envs.data.rows import DatasetError, UnusableRow, missing_medium, one_line
from envs.data.sources import NOTHING, Files, Source, locate_source
from envs.video.reader import VideoError
from rl.trajectory import AnswerKind, TimeSpan, VideoTask

Row = TypeVar("Row", VideoTask, RetrievalTrace)


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A row that was left out, and why."""

    file: str
    line: int  # where the row starts, counted from 1
    reason: str
    missing: str = ""  # the medium, where the reason is that it is not there


@dataclass(frozen=True, slots=True)
class LoadedTasks:
    """The usable rows of a file, and the others."""

    tasks: tuple[VideoTask, ...]
    rejected: tuple[RejectedRow, ...]
    clamped: int = 0  # tasks whose evidence or answer ended after the clip
    windows_left_out: tuple[RejectedRow, ...] = ()  # of usable rows: one unusable window of several, and why


@dataclass(frozen=True, slots=True)
class LoadedTraces:
    """The usable traces of a file, and the other rows."""

    traces: tuple[RetrievalTrace, ...]
    rejected: tuple[RejectedRow, ...]


def load_tasks(
    format: str,
    path: str | Path,
    video_root: str | Path = "",
    columns: Mapping[str, str] = NOTHING,
    part: Part = WHOLE,
    *,
    duration_of: Callable[[str], float] | None = None,
    unusable: Mapping[str, str] = NOTHING,
) -> LoadedTasks:
    """Read an annotation file, or those of a repository's split, into tasks.

    Args:
        format: dm_rl, dm_cot, charades_sta, csv, parquet, or "path/file.py:reader".
        video_root: every video must lie under it; empty: the folder of the annotation file.
        columns: of a table: value of a row -> the column that has it.
        part: of a repository of the hub, where `path` is the folder of its copy.
        duration_of: length of a video in seconds, raising VideoError where it cannot be read. With it, spans are
            clamped to the clip and unreadable videos are rejected.
        unusable: videos known to be so, and why: their rows are rejected.
    Raises:
        DatasetError: unknown format or columns, no such file or folder, or the file cannot be read as a whole.
    """
    row_format, files = locate_source(Source(format, path, video_root, columns, part))
    tasks, rejected, left_out = _read(files, row_format, row_format.task, unusable)
    if duration_of is None:
        return LoadedTasks(tuple(task for _, _, task in tasks), tuple(rejected), windows_left_out=tuple(left_out))
    duration_of = lru_cache(maxsize=None)(duration_of)
    kept, clamped = [], 0
    for path, line, task in tasks:
        try:
            within = within_clip(task, duration_of(task.video_path))
        except (UnusableRow, VideoError) as error:
            rejected.append(_rejected(path, line, error))
            continue
        if lost := len(task.evidence) - len(within.evidence):
            reason = f"{lost} of {len(task.evidence)} windows of 'evidence' lie after the end of the video"
            left_out.append(RejectedRow(str(path), line, reason))
        kept.append(within)
        clamped += within is not task
    order = {str(path): place for place, path in enumerate(files.paths)}
    rejected.sort(key=lambda row: (order[row.file], row.line))
    return LoadedTasks(tuple(kept), tuple(rejected), clamped, tuple(left_out))


def load_traces(
    format: str,
    path: str | Path,
    video_root: str | Path = "",
    columns: Mapping[str, str] = NOTHING,
    part: Part = WHOLE,
    *,
    unusable: Mapping[str, str] = NOTHING,
) -> LoadedTraces:
    """Read an annotation file into supervised traces; as `load_tasks`.

    Raises:
        DatasetError: also if the format holds no traces.
    """
    row_format, files = locate_source(Source(format, path, video_root, columns, part))
    if row_format.trace is None:
        raise DatasetError(f"{path}: format {format!r} holds no traces; use dm_cot")
    traces, rejected, _ = _read(files, row_format, row_format.trace, unusable)
    return LoadedTraces(tuple(trace for _, _, trace in traces), tuple(rejected))


def within_clip(task: VideoTask, duration_s: float) -> VideoTask:
    """The task with its evidence and answer clamped to a clip of this length; the same task if nothing ends after it.

    Of several evidence windows, those that lie after the clip's end are left out.

    Raises:
        UnusableRow: the answer, or all evidence, lies after the clip's end.
    """
    if any(window.end_s > duration_s for window in task.evidence):
        video, first = task.video_path, min(task.evidence, key=lambda window: window.start_s)
        _clamped(first, duration_s, video)  # of all of them, if this one is
        inside = [_clamped(window, duration_s, video) for window in task.evidence if window.start_s < duration_s]
        task = replace(task, evidence_span=inside[0], further_evidence=tuple(inside[1:]))
    answer = read_span(task.answer) if task.answer_kind is AnswerKind.SPAN else None
    if answer is not None and answer.end_s > duration_s:
        task = replace(task, answer=spell_span(_clamped(answer, duration_s, task.video_path)))
        if read_span(task.answer) is None:
            raise UnusableRow(f"{task.video_path}: nothing is left of the answer within the video ({duration_s:g} s)")
    return task


def tasks_for_step(tasks: Sequence[VideoTask], seed: int, step: int, tasks_per_step: int) -> tuple[VideoTask, ...]:
    """The tasks of a step (counted from 0): a pure function, so that to resume is to know an integer.

    Steps cut one endless sequence: each epoch is a permutation of all n tasks of its own, the next one follows without
    a gap, so nothing is lost or repeated where an epoch ends inside a step.

    Raises:
        ValueError: there are no tasks.
    """
    if not tasks:
        raise ValueError("there are no tasks to sample from")
    n, first = len(tasks), step * tasks_per_step
    places = (divmod(place, n) for place in range(first, first + tasks_per_step))
    return tuple(tasks[_epoch_order(n, seed, epoch)[index]] for epoch, index in places)


@lru_cache(maxsize=4)
def _epoch_order(n: int, seed: int, epoch: int) -> tuple[int, ...]:
    """Indices sorted by a hash: the same on every machine and Python version."""
    return tuple(sorted(range(n), key=lambda index: hashlib.sha256(f"{seed}/{epoch}/{index}".encode()).digest()))


def _read(
    files: Files, row_format: RowFormat, convert: Callable[[object, Path, str], Row], unusable: Mapping[str, str]
) -> tuple[list[tuple[Path, int, Row]], list[RejectedRow], list[RejectedRow]]:
    """Usable rows with their files and lines; the others; what was left out of usable ones."""
    kept: list[tuple[Path, int, Row]] = []
    rejected: list[RejectedRow] = []
    left_out: list[RejectedRow] = []
    value: object = None
    for path in files.paths:
        for line, value in row_format.rows(path):
            try:
                if isinstance(value, UnusableRow):
                    raise value
                row = convert(value, files.root, f"{files.name(path)}:{line}")
                task = row.task if isinstance(row, RetrievalTrace) else row
                if task.video_path in unusable:
                    raise UnusableRow(f"its video is quarantined: {unusable[task.video_path]}")
                kept.append((path, line, row))
                left_out += [RejectedRow(str(path), line, reason) for reason in left_out_of(value)]
            except UnusableRow as error:
                rejected.append(_rejected(path, line, error))
    if len(rejected) == 1 and not kept and (advice := rows_within(value)):
        rejected = [replace(rejected[0], reason=f"{advice} (as a row: {rejected[0].reason})")]
    return kept, rejected, left_out


def _rejected(path: Path, line: int, error: Exception) -> RejectedRow:
    return RejectedRow(str(path), line, one_line(error), missing_medium(error))


def _clamped(span: TimeSpan, duration_s: float, video: str) -> TimeSpan:
    """The part of a window that lies in the clip."""
    if span.start_s >= duration_s:
        window = f"{span.start_s:g} - {span.end_s:g}"
        raise UnusableRow(f"{video}: the span {window} lies after the end of the video ({duration_s:g} s)")
    return TimeSpan(span.start_s, min(span.end_s, duration_s))
