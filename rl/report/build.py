"""One HTML file from a run's folder, within a budget of bytes.

    folder -> metrics, steps -> (details that fit) + (thumbnails that fit) -> page

Text comes first: a page without every picture still tells what the policy did.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rl.config.errors import ConfigError
from rl.report.evaluations import read_evaluations
from rl.report.failures import FailureRow, read_failure_rows
from rl.report.fault_log import FaultLog, read_fault_log
from rl.report.page import json_part, packed_part, page_bytes, write_page
from rl.report.run_files import (
    Broken,
    MetricTable,
    StepFile,
    read_ancestry,
    read_config,
    read_json_lines,
    read_metrics,
    read_summary,
    step_files,
)
from rl.report.steps import FrameNeeds, ReportStep, compact, packed
from rl.report.thumbnails import ClipThumbnails, FrameSource, Thumbnails, evenly, make_thumbnails
from rl.report.work_lanes import WorkLanes, profile_files, read_work_lanes
from rl.tracking.metrics import describe

MIB = 2**20
DETAIL_SHARE = 0.7  # of the budget that texts and log-probs may take before they are thinned
PART_BYTES, NOTICES_BYTES = 128, 4096  # of markup around a piece of data; of what the page says it leaves out
UNKNOWN_CLIP = ClipThumbnails(duration_s=12345.678901)  # weighs in the index what a clip that was read will
MOST_BROKEN = 200  # listed on the page; all are counted

Progress = Callable[[str, int, int], None]  # what, done, of how many


@dataclass(frozen=True, slots=True)
class RunData:
    """Everything read from a run's folder."""

    folder: Path
    metrics: MetricTable
    faults: FaultLog
    lanes: WorkLanes
    profiles: Mapping[int, Sequence[str]]  # step -> files within the run's folder
    failures: tuple[FailureRow, ...]
    steps: tuple[ReportStep, ...]
    config: tuple[tuple[str, str], ...]
    summary: Mapping[str, Any]
    evaluations: tuple[Mapping[str, Any], ...]
    broken: tuple[Broken, ...]


@dataclass(frozen=True, slots=True)
class Written:
    """What build_report wrote."""

    path: Path
    num_bytes: int
    num_steps: int
    num_trajectories: int
    notices: tuple[str, ...]


class StepCache:
    """Report steps by file; a file that did not change is not read again."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, int], ReportStep]] = {}

    def read(self, file: StepFile, run: Path) -> ReportStep:
        """The report step of a file."""
        state = file_state(file.path)
        known = self._known.get(file.path)
        if known is None or known[0] != state:
            known = state, compact(file, read_json_lines(file.path, run))
            self._known[file.path] = known
        return known[1]


def read_run(run: Path, cache: StepCache, progress: Progress = lambda *_: None) -> RunData:
    """Read a run's folder; damaged lines and files are listed in `broken`."""
    metrics, faults, lanes = read_metrics(run), read_fault_log(run), read_work_lanes(run)
    failures, bad_failures = read_failure_rows(run)
    config, bad_config = read_config(run)
    summary, bad_summary = read_summary(run)
    evaluations, bad_evaluations = read_evaluations(run)
    files = step_files(run)
    steps = []
    for done, file in enumerate(files, start=1):
        steps.append(cache.read(file, run))
        progress("reading trajectories", done, len(files))
    bad_records = [broken for step in steps for broken in step.broken]
    return RunData(
        folder=run,
        metrics=metrics,
        faults=faults,
        lanes=lanes,
        profiles=profile_files(run),
        failures=tuple(failures),
        steps=tuple(steps),
        config=(*read_ancestry(run), *config),
        summary=summary,
        evaluations=tuple(asdict(row) for row in evaluations),
        broken=(
            *metrics.broken,
            *faults.broken,
            *lanes.broken,
            *bad_failures,
            *bad_config,
            *bad_summary,
            *bad_evaluations,
            *bad_records,
        ),
    )


def build_report(
    run: Path, out: Path, source: FrameSource, *, max_bytes: int, progress: Progress = lambda *_: None
) -> Written:
    """Write the report of a run.

    Raises:
        ConfigError: nothing has been reported yet, or not even the curves fit into the budget.
    """
    data = read_run(run, StepCache(), progress)
    if not data.metrics.steps_S and not data.steps:
        raise ConfigError(f"{run}: nothing has been reported yet (no step in metrics.jsonl, no trajectories)")
    videos = dict.fromkeys(need.video for step in data.steps for need in step.needs)
    largest = run_index(data, clip_index({video: UNKNOWN_CLIP for video in videos}), ())
    room = max_bytes - page_bytes([packed_part("run", packed(largest))]) - NOTICES_BYTES
    if room < 0:
        raise ConfigError(f"--max-mib {max_bytes / MIB:g}: the curves and the list of groups alone take more")
    details, notices = choose_details(data.steps, int(room * DETAIL_SHARE))
    parts = [packed_part(f"step-{name}", detail) for name, detail in details.items()]
    room -= sum(len(part) + PART_BYTES for part in parts) + PART_BYTES * len(videos)
    thumbnails = make_thumbnails(
        by_priority(data.steps), source, max(room, 0), lambda done, total: progress("decoding clips", done, total)
    )
    notices = (*notices, *_thumbnail_notices(thumbnails))
    parts += [
        json_part(f"clip-{number}", {"problem": clip.problem, "images": clip.images})
        for number, clip in enumerate(thumbnails.clips.values())
    ]
    index = run_index(data, clip_index(thumbnails.clips), notices)
    written = write_page(out, _title(data), [packed_part("run", packed(index)), *parts])
    trajectories = sum(len(step.needs) for step in data.steps)
    return Written(out, written, len(data.steps), trajectories, notices)


def file_state(path: Path) -> tuple[int, int]:
    """Changes when the file does; (0, 0) where there is none."""
    try:
        status = path.stat()
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)


def run_index(data: RunData, clips: Mapping[str, Any], notices: Sequence[str]) -> dict[str, Any]:
    """What the page needs when it is opened: curves, tables, the list of all groups."""
    return {
        "name": data.folder.name,
        "folder": str(data.folder),
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "steps": data.metrics.steps_S,
        "metrics": _metrics(data.metrics),
        "faults": {
            "count": data.faults.count,
            "kinds": list(data.faults.kinds.items()),
            "steps": list(data.faults.steps.items()),
            "newest": [asdict(row) for row in data.faults.newest],
        },
        "lanes": {"steps": [asdict(step) for step in data.lanes.steps], "left_out": data.lanes.left_out},
        "profiles": data.profiles,
        "failures": [asdict(row) for row in data.failures],
        "config": data.config,
        "summary": data.summary,
        "evaluations": data.evaluations,
        "report_steps": [step.index for step in data.steps],
        "clips": clips,
        "notices": list(notices),
        "broken": {
            "count": len(data.broken),
            "first": [{"place": broken.place, "reason": broken.reason} for broken in data.broken[:MOST_BROKEN]],
        },
    }


def clip_index(clips: Mapping[str, ClipThumbnails]) -> dict[str, Any]:
    """{video: {id, duration_s}}; `id` names the part that holds its thumbnails."""
    return {video: {"id": number, "duration_s": clip.duration_s} for number, (video, clip) in enumerate(clips.items())}


def choose_details(steps: Sequence[ReportStep], room_bytes: int) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Details of each step: all with numbers per token if they fit; else of fewer steps, spread evenly.

    Returns:
        {step id: gzip}, and notices of what was left out.
    """
    order = [steps[i] for i in evenly(len(steps))]
    cost = {step.id: (_in_page(step.plain), _in_page(step.full)) for step in steps}
    details: dict[str, bytes] = {}
    used = 0
    for step in order:  # texts first …
        if used + cost[step.id][0] <= room_bytes:
            details[step.id] = step.plain
            used += cost[step.id][0]
    with_text = len(details)
    with_numbers = 0
    for step in order:  # … then numbers per token
        plain, full = cost[step.id]
        if step.id in details and used + full - plain <= room_bytes:
            details[step.id] = step.full
            used += full - plain
            with_numbers += 1
    notices = []
    if with_text < len(steps):
        notices.append(f"Texts of {len(steps) - with_text} of {len(steps)} steps are left out to keep the page small.")
    if with_numbers < with_text:
        notices.append(f"Per-token numbers are here for {with_numbers} of {len(steps)} steps, to keep the page small.")
    ordered = {step.id: details[step.id] for step in steps if step.id in details}
    return ordered, tuple(notices)


def by_priority(steps: Sequence[ReportStep]) -> list[FrameNeeds]:
    """Every trajectory's frames, so that any beginning is spread evenly over steps, and in a step over groups."""
    spread = [[step.needs[i] for i in evenly(len(step.needs))] for step in (steps[i] for i in evenly(len(steps)))]
    longest = max((len(needs) for needs in spread), default=0)
    return [needs[turn] for turn in range(longest) for needs in spread if turn < len(needs)]


def _metrics(table: MetricTable) -> list[dict[str, Any]]:
    """By name; a metric that holds text has no values, and its last text."""
    names = sorted({*table.columns, *table.texts})
    return [_metric(name, table.columns.get(name, ()), table.texts.get(name)) for name in names]


def _metric(name: str, values: Sequence[Any], text: str | None) -> dict[str, Any]:
    try:
        unit, meaning = describe(name)
    except KeyError:
        unit, meaning = "", "not known to this version of dynframe"
    told = {} if text is None else {"text": text}
    return {"name": name, "unit": unit, "meaning": meaning, "values": values, **told}


def _thumbnail_notices(thumbnails: Thumbnails) -> list[str]:
    notices = []
    unread = [clip for clip in thumbnails.clips.values() if clip.problem]
    if thumbnails.shown < thumbnails.wanted:
        notices.append(
            f"Thumbnails are here for {thumbnails.shown} of {thumbnails.wanted} trajectories, spread evenly over the "
            "steps, to keep the page small (--max-mib)."
        )
    if unread:
        notices.append(f"{len(unread)} of {len(thumbnails.clips)} clips cannot be shown: {unread[0].problem}")
    return notices


def _title(data: RunData) -> str:
    return f"{data.folder.name} · dynframe"


def _in_page(data: bytes) -> int:
    return 4 * ((len(data) + 2) // 3)
