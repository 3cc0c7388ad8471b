"""`dynframe validate-data`: every clip decoded once, a verdict per row, and the list that training honours.

Part of the composition root.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from envs.clip_verdicts import ClipStatus, ClipVerdict, QuarantinedVideoError, VerdictFile, check_clip
from envs.dataset import load_tasks, load_traces
from envs.video import VideoReader
from rl.config import RunConfig, SourceConfig
from rl.prepare import as_config_error, located, progress_bar, quarantine_file
from rl.trajectory import VideoTask

Located = tuple[str, Path, str]  # format, annotation file, video root
SHOWN = 10  # rows listed on the console; the file has all
ROWS_FILE = "validated_rows.jsonl"


@dataclass(frozen=True, slots=True)
class RowVerdict:
    """One row of an annotation file."""

    split: str  # train | held_out | cold_start
    row: str  # the task's id, or FILE:LINE where no task could be made of it
    video: str  # empty where none could be named
    status: str  # ok | repaired | quarantined
    reason: str = ""


@dataclass(frozen=True, slots=True)
class DataReport:
    """What a validation found."""

    rows: tuple[RowVerdict, ...]
    clips: int
    decoded: int  # of them, in this go: the others were known already
    quarantine: Path  # the verdicts on clips
    listing: Path  # the verdicts on rows

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
    """Decode the clips of all splits that have not been decoded before, and judge every row.

    Args:
        workers: decoding processes; 0: one per core.
    Raises:
        ConfigError: an annotation file cannot be used at all, or the verdicts cannot be written.
    """
    sources = dict(_sources(config, console))
    clips = sorted({task.video_path for split, source in sources.items() for task in _tasks(split, source)})
    home = quarantine_file(config)
    with VerdictFile(home) as file:
        new = [clip for clip in clips if clip not in file.verdicts]
        _decode(new, file, config, console, workers or os.cpu_count() or 1)
        rows = tuple(row for split, source in sources.items() for row in judge_rows(split, source, file.verdicts))
    listing = home.with_name(ROWS_FILE)
    listing.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows), encoding="utf-8")
    return DataReport(rows, len(clips), len(new), home, listing)


def judge_rows(split: str, source: Located, verdicts: dict[str, ClipVerdict]) -> Iterator[RowVerdict]:
    """A verdict per row, from those on the clips: what a run would do with it.

    Args:
        verdicts: by video; there is one for every clip of the source.
    """

    def duration_of(video: str) -> float:
        verdict = verdicts[video]
        if verdict.status is ClipStatus.QUARANTINED:
            raise QuarantinedVideoError(video, verdict.reason, "replace the file or drop the row")
        return verdict.duration_s

    if split == "cold_start":
        rejected, raw = load_traces(*source).rejected, _tasks(split, source)
        used = {task.task_id: task for task in raw if verdicts[task.video_path].status is not ClipStatus.QUARANTINED}
        bad = [task for task in raw if task.task_id not in used]
        yield from (
            RowVerdict(split, task.task_id, task.video_path, "quarantined", verdicts[task.video_path].reason)
            for task in bad
        )
    else:
        loaded, raw = load_tasks(*source, duration_of=duration_of), load_tasks(*source).tasks
        rejected, used = loaded.rejected, {task.task_id: task for task in loaded.tasks}
    yield from (RowVerdict(split, f"{row.file}:{row.line}", "", "quarantined", row.reason) for row in rejected)
    for task in raw:
        if task.task_id in used:
            yield _usable(split, task, used[task.task_id], verdicts)


def count_rows(rows: Sequence[RowVerdict]) -> dict[str, Counter[str]]:
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
    if config.cold_start.enabled and traces.format == "dm_cot":
        yield "cold_start", located(config, traces, "train", console)


def _tasks(split: str, source: Located) -> tuple[VideoTask, ...]:
    if split == "cold_start":
        return tuple(trace.task for trace in load_traces(*source).traces)
    return load_tasks(*source).tasks


def _decode(clips: Sequence[str], file: VerdictFile, config: RunConfig, console: Console, workers: int) -> None:
    """Check clips in parallel, each in a process that can be killed; a verdict is on disk as soon as it is known."""
    video, readers = config.video, SimpleQueue()
    with ExitStack() as stack, progress_bar(console) as progress:
        for _ in range(min(workers, len(clips))):
            readers.put(stack.enter_context(VideoReader(video.backend, video.decode_timeout_s, 1, store_bytes=0)))

        def check(clip: str) -> ClipVerdict:
            reader = readers.get()
            try:
                return check_clip(reader, clip)
            finally:
                readers.put(reader)

        bar = progress.add_task("decoding clips", total=len(clips))
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        for done in as_completed([pool.submit(check, clip) for clip in clips]):
            file.append(done.result())
            progress.advance(bar)


def _usable(split: str, raw: VideoTask, used: VideoTask, verdicts: dict[str, ClipVerdict]) -> RowVerdict:
    verdict = verdicts[raw.video_path]
    changes = [verdict.reason] if verdict.reason else []
    if used != raw:
        changes.insert(0, f"clamped to the clip, which ends at {verdict.duration_s:g} s")
    return RowVerdict(split, raw.task_id, raw.video_path, "repaired" if changes else "ok", "; ".join(changes))
