"""`dynframe validate-data`: every clip decoded once, a status per row, and the list that training honours.

Part of the composition root.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from envs.data.clip_status import CheckedClip, ClipStatus, ClipStatusFile, check_clip
from envs.data.dataset import RejectedRow, load_tasks, load_traces, within_clip
from envs.data.formats import has_traces
from envs.data.rows import UnusableRow
from envs.video.reader import VideoReader
from rl.config.data import SourceConfig
from rl.config.run import RunConfig
from rl.run.console.stages import counted_stage
from rl.run.prepare.errors import as_config_error
from rl.run.prepare.tasks import located, quarantine_file
from rl.trajectory import VideoTask

Located = tuple[str, Path, str]  # format, annotation file, video root
SHOWN = 10  # rows listed on the console; the file has all


@dataclass(frozen=True, slots=True)
class CheckedRow:
    """One row of an annotation file."""

    split: str  # train | held_out | cold_start
    row: str  # the task's id (file and line), or FILE:LINE where no task could be made of it
    video: str  # empty where none could be named
    status: str  # ok | repaired | quarantined
    reason: str = ""


@dataclass(frozen=True, slots=True)
class DataReport:
    """What a validation found."""

    rows: tuple[CheckedRow, ...]
    clips: int
    decoded: int  # of them, in this go: the others were known already
    quarantine: Path  # the status of clips
    listing: Path  # the status of rows

    @property
    def passed(self) -> bool:
        """Whether every row can be used."""
        return all(row.status != ClipStatus.QUARANTINED for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """For --json: counts per split, the rows that are not simply ok, and where everything lies."""
        return {
            "passed": self.passed,
            "clips": self.clips,
            "decoded": self.decoded,
            "splits": {split: dict(counts) for split, counts in count_rows(self.rows).items()},
            "rows": [asdict(row) for row in self.rows if row.status != ClipStatus.OK],
            "quarantine": str(self.quarantine),
            "listing": str(self.listing),
        }


@as_config_error()
def validate_data(config: RunConfig, console: Console, *, workers: int = 0) -> DataReport:
    """Decode the clips of all splits that have not been decoded before, and find every row's status.

    Args:
        workers: decoding processes; 0: one per core.
    Raises:
        ConfigError: an annotation file cannot be used at all, or the statuses cannot be written.
    """
    sources = [(split, *_load(split, source)) for split, source in _sources(config, console)]
    clips = sorted({task.video_path for _, tasks, _ in sources for task in tasks})
    home = quarantine_file(config)
    with ClipStatusFile(home) as file:
        new = [clip for clip in clips if clip not in file.clips]
        _decode(new, file, config, console, workers or os.cpu_count() or 1)
        rows = tuple(row for source in sources for row in row_statuses(*source, file.clips))
    listing = home.with_name(f"validated_rows-{config.name}.jsonl")
    draft = listing.with_name(f".{listing.name}.{os.getpid()}")
    draft.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows), encoding="utf-8")
    draft.replace(listing)
    return DataReport(rows, len(clips), len(new), home, listing)


def row_statuses(
    split: str, tasks: Sequence[VideoTask], rejected: Sequence[RejectedRow], clips: Mapping[str, CheckedClip]
) -> Iterator[CheckedRow]:
    """A status per row, from those of the clips: what a run would do with it.

    Args:
        rejected: rows of which no task could be made.
        clips: by video; there is one for every clip of the tasks.
    """
    yield from (CheckedRow(split, f"{row.file}:{row.line}", "", "quarantined", row.reason) for row in rejected)
    yield from (_checked_row(split, task, clips[task.video_path]) for task in tasks)


def count_rows(rows: Sequence[CheckedRow]) -> dict[str, Counter[str]]:
    """Rows of each status, by split."""
    counted: dict[str, Counter[str]] = {}
    for row in rows:
        counted.setdefault(row.split, Counter()).update([str(row.status)])
    return counted


def print_report(report: DataReport, console: Console) -> None:
    """Counts per split, the first rows that are not ok, and where all of them lie."""
    table = Table(title=f"{report.clips} clips, {report.decoded} decoded now", box=None, pad_edge=False)
    for heading in ("split", "rows", *ClipStatus):
        table.add_column(str(heading), justify="left" if heading == "split" else "right")
    for split, counts in count_rows(report.rows).items():
        table.add_row(split, str(counts.total()), *(str(counts[status]) for status in ClipStatus))
    console.print(table)
    notable = sorted((row for row in report.rows if row.status != ClipStatus.OK), key=lambda row: row.status)
    for row in notable[:SHOWN]:
        console.print(f"[yellow]{row.status}[/] {escape(row.row)}: {escape(row.reason)}", highlight=False)
    if len(notable) > SHOWN:
        console.print(f"and {len(notable) - SHOWN} more")
    console.print(f"every row: {report.listing}\nclips, honoured by training: {report.quarantine}", highlight=False)


def _sources(config: RunConfig, console: Console) -> Iterator[tuple[str, Located]]:
    """The annotation files of a run, by split; the synthetic world's traces are of its training clips."""
    for split in ("train", "held_out"):
        yield split, located(config, getattr(config.data, split), split, console)
    traces: SourceConfig = config.cold_start.traces
    if config.cold_start.enabled and traces.format != "quickstart":
        yield "cold_start", located(config, traces, "train", console)


def _load(split: str, source: Located) -> tuple[Sequence[VideoTask], Sequence[RejectedRow]]:
    """The tasks a source can be read as, and its other rows."""
    if split == "cold_start" and has_traces(source[0]):
        traces = load_traces(*source)
        return [trace.task for trace in traces.traces], traces.rejected
    tasks = load_tasks(*source)
    return tasks.tasks, tasks.rejected


def _decode(clips: Sequence[str], file: ClipStatusFile, config: RunConfig, console: Console, workers: int) -> None:
    """Check clips in parallel, each in a process that can be killed; a status is on disk as soon as it is known."""
    video, readers = config.video, SimpleQueue()
    doing = f"decoding {len(clips):,} clips"
    with ExitStack() as stack, counted_stage(console, doing, len(clips)) as decoding:
        for _ in range(min(workers, len(clips))):
            reader = VideoReader(video.backend, video.decode_timeout_s, 1, 0, video.decode_memory_mib)
            readers.put(stack.enter_context(reader))

        def check(clip: str) -> CheckedClip:
            reader = readers.get()
            try:
                return check_clip(reader, clip)
            finally:
                readers.put(reader)

        pool = stack.enter_context(ThreadPoolExecutor(workers))
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        for done in as_completed([pool.submit(check, clip) for clip in clips]):
            file.append(done.result())
            decoding.advance()


def _checked_row(split: str, task: VideoTask, clip: CheckedClip) -> CheckedRow:
    if clip.status is ClipStatus.QUARANTINED:
        return CheckedRow(split, task.task_id, task.video_path, "quarantined", clip.reason)
    changes = [clip.reason] if clip.reason else []
    if split != "cold_start":  # a trace is replayed as it is written
        try:
            clamped = within_clip(task, clip.duration_s) is not task
        except UnusableRow as error:
            return CheckedRow(split, task.task_id, task.video_path, "quarantined", str(error))
        changes = [f"clamped to the clip, which ends at {clip.duration_s:g} s"] * clamped + changes
    return CheckedRow(split, task.task_id, task.video_path, "repaired" if changes else "ok", "; ".join(changes))
