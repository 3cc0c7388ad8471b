"""`dynframe validate-data`: every clip decoded once, a status per row, and the list that training honours.

Both lists are written while clips are decoded: a validation that is killed has left what it knew.

Part of the composition root.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from envs.data.clip_status import CheckedClip, ClipStatus, ClipStatusFile
from envs.data.dataset import RejectedRow, load_tasks, load_traces, within_clip
from envs.data.rows import UnusableRow
from envs.data.sources import Source, has_traces
from rl.config.data import SourceConfig
from rl.config.run import RunConfig
from rl.run.prepare.clips import checked_clips, is_known
from rl.run.prepare.errors import as_config_error
from rl.run.prepare.tasks import located, quarantine_file
from rl.trajectory import VideoTask

SHOWN = 10  # rows listed on the console; the file has all


@dataclass(frozen=True, slots=True)
class CheckedRow:
    """One row of an annotation file."""

    split: str  # train | held_out | cold_start
    row: str  # the task's id (file and line), or FILE:LINE where no task could be made of it
    video: str  # empty where none could be named
    status: str  # ok | repaired | quarantined | undecided
    reason: str = ""


@dataclass(frozen=True, slots=True)
class LoadedSplit:
    """What the annotation file of a split holds."""

    name: str  # train | held_out | cold_start
    tasks: tuple[VideoTask, ...]
    rejected: tuple[RejectedRow, ...]  # rows of which no task could be made
    left_out: tuple[RejectedRow, ...] = ()  # windows of tasks that have others
    as_written: bool = False  # supervised traces, which are replayed as they are


@dataclass(frozen=True, slots=True)
class DataReport:
    """What a validation found."""

    rows: tuple[CheckedRow, ...]
    clips: int
    decoded: int  # of them, in this go: the others were known already
    quarantine: Path  # the status of clips
    listing: Path  # the status of rows
    shown_as: dict[str, int]  # what is done to clips before they are shown, and to how many

    @property
    def passed(self) -> bool:
        """Whether every row can be used."""
        return all(row.status in (ClipStatus.OK, ClipStatus.REPAIRED) for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """For --json: counts per split, the rows that are not simply ok, and where everything lies."""
        return {
            "passed": self.passed,
            "clips": self.clips,
            "decoded": self.decoded,
            "shown_as": self.shown_as,
            "splits": {split: dict(counts) for split, counts in count_rows(self.rows).items()},
            "rows": [asdict(row) for row in self.rows if row.status != ClipStatus.OK],
            "quarantine": str(self.quarantine),
            "listing": str(self.listing),
        }


@as_config_error()
def validate_data(config: RunConfig, console: Console, *, workers: int = 0, sample: bool = False) -> DataReport:
    """Decode the clips of all splits that have not been decoded before, and find every row's status.

    Args:
        workers: decoding processes; 0: one per core.
        sample: open clips and decode a few frames only. What passed so is decoded whole by a validation without it.
    Raises:
        ConfigError: an annotation file cannot be used at all, or the statuses cannot be written.
    """
    splits = [_load(split, source) for split, source in _sources(config, console)]
    clips = sorted({task.video_path for split in splits for task in split.tasks})
    home = quarantine_file(config)
    listing = home.with_name(f"validated_rows-{config.name}.jsonl")
    with ClipStatusFile(home) as file:
        new = [clip for clip in clips if not is_known(file.clips.get(clip), sample)]
        known = {clip: file.clips[clip] for clip in set(clips).difference(new)}
        with listing.open("w", encoding="utf-8") as lines:

            def list_rows(clips: Mapping[str, CheckedClip], *, with_rejected: bool = False) -> None:
                for split in splits:
                    there = tuple(task for task in split.tasks if task.video_path in clips)
                    rejected = split.rejected if with_rejected else ()
                    for row in row_statuses(replace(split, tasks=there, rejected=rejected), clips):
                        lines.write(_as_line(row))
                lines.flush()

            list_rows(known, with_rejected=True)
            for clip in checked_clips(new, config.video, console, workers=workers, sample=sample):
                file.append(clip)
                list_rows({clip.video: clip})
        rows = tuple(row for split in splits for row in row_statuses(split, file.clips))
        shown_as = Counter(what for clip in clips for what in file.clips[clip].shown_as.split("; ") if what)
    draft = listing.with_name(f".{listing.name}.{os.getpid()}")  # in the order of the annotation files
    draft.write_text("".join(map(_as_line, rows)), encoding="utf-8")
    draft.replace(listing)
    return DataReport(rows, len(clips), len(new), home, listing, dict(shown_as.most_common()))


def row_statuses(split: LoadedSplit, clips: Mapping[str, CheckedClip]) -> Iterator[CheckedRow]:
    """A status per row, from those of the clips: what a run would do with it.

    Args:
        clips: by video; there is one for every clip of the tasks.
    """
    for row in split.rejected:
        yield CheckedRow(split.name, f"{row.file}:{row.line}", "", "quarantined", row.reason)
    left_out = {f"{Path(window.file).stem}:{window.line}": window.reason for window in split.left_out}
    for task in split.tasks:
        changes = [left_out[task.task_id]] if task.task_id in left_out else []
        yield _checked_row(split, task, clips[task.video_path], changes)


def count_rows(rows: Sequence[CheckedRow]) -> dict[str, Counter[str]]:
    """Rows of each status, by split."""
    counted: dict[str, Counter[str]] = {}
    for row in rows:
        counted.setdefault(row.split, Counter()).update([str(row.status)])
    return counted


def print_report(report: DataReport, console: Console) -> None:
    """Counts per split, what clips are shown as, the first rows that are not ok, and where all of them lie."""
    table = Table(title=f"{report.clips} clips, {report.decoded} decoded now", box=None, pad_edge=False)
    for heading in ("split", "rows", *ClipStatus):
        table.add_column(str(heading), justify="left" if heading == "split" else "right")
    for split, counts in count_rows(report.rows).items():
        table.add_row(split, str(counts.total()), *(str(counts[status]) for status in ClipStatus))
    console.print(table)
    for what, clips in report.shown_as.items():
        console.print(f"{clips} clip{'s' * (clips > 1)} shown {escape(what)}", highlight=False)
    notable = sorted((row for row in report.rows if row.status != ClipStatus.OK), key=lambda row: row.status)
    for row in notable[:SHOWN]:
        reason = row.reason if row.video in row.reason else f"{row.video}: {row.reason}"
        console.print(f"[yellow]{row.status}[/] {escape(row.row)}: {escape(reason)}", highlight=False)
    if len(notable) > SHOWN:
        console.print(f"and {len(notable) - SHOWN} more")
    console.print(f"every row: {report.listing}\nclips, honoured by training: {report.quarantine}", highlight=False)


def _sources(config: RunConfig, console: Console) -> Iterator[tuple[str, Source]]:
    """The annotation files of a run, by split; the synthetic world's traces are of its training clips."""
    for split in ("train", "held_out"):
        yield split, located(config, getattr(config.data, split), split, console)
    traces: SourceConfig = config.cold_start.traces
    if config.cold_start.enabled and traces.format != "quickstart":
        yield "cold_start", located(config, traces, "train", console)


def _load(split: str, source: Source) -> LoadedSplit:
    """The tasks a source can be read as, and its other rows."""
    if split == "cold_start" and has_traces(source):
        traces = load_traces(*source)
        return LoadedSplit(split, tuple(trace.task for trace in traces.traces), traces.rejected, as_written=True)
    loaded = load_tasks(*source)
    return LoadedSplit(split, loaded.tasks, loaded.rejected, loaded.windows_left_out)


def _as_line(row: CheckedRow) -> str:
    return json.dumps(asdict(row)) + "\n"


def _checked_row(loaded: LoadedSplit, task: VideoTask, clip: CheckedClip, changes: list[str]) -> CheckedRow:
    split = loaded.name
    if clip.status in (ClipStatus.QUARANTINED, ClipStatus.UNDECIDED):
        return CheckedRow(split, task.task_id, task.video_path, clip.status.value, clip.reason)
    changes = [*changes, clip.reason] if clip.reason else changes
    if not loaded.as_written:
        try:
            clamped = within_clip(task, clip.duration_s) is not task
        except UnusableRow as error:
            return CheckedRow(split, task.task_id, task.video_path, "quarantined", str(error))
        changes = [f"clamped to the clip, which ends at {clip.duration_s:g} s"] * clamped + changes
    return CheckedRow(split, task.task_id, task.video_path, "repaired" if changes else "ok", "; ".join(changes))
