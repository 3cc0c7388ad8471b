"""lanes.jsonl for the report: who worked when, of the newest steps that fit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl.report.run_files import Broken, finite, is_step, read_json_lines
from rl.tracking.lanes import LANES, PROFILES

MOST_BYTES = 2**18  # of the lanes on a page, as JSON
MOST_STEPS = 200
MOST_PROFILES = 500
WORKER_CHARS, WORK_CHARS = 40, 20  # of names that are shown

Lane = list[Any]  # [worker, [[what it did, start, end], …]], seconds from the step's start


@dataclass(frozen=True, slots=True)
class StepLanes:
    """One step: who worked between the report of the step before and its own."""

    step: int
    start_s: float  # since the epoch
    seconds: float
    lanes: tuple[Lane, ...]


@dataclass(frozen=True, slots=True)
class WorkLanes:
    """The steps whose lanes are shown."""

    steps: tuple[StepLanes, ...] = ()
    left_out: int = 0  # older steps, or ones too large
    broken: tuple[Broken, ...] = ()


def read_work_lanes(run: Path) -> WorkLanes:
    """The newest steps of lanes.jsonl, at most MOST_STEPS and MOST_BYTES; of a repeated step the later line counts."""
    path, found, broken = run / LANES, dict[int, StepLanes](), []
    for line, number in read_json_lines(path, run) if path.exists() else ():
        try:
            if isinstance(line, Broken):
                broken.append(line)
            else:
                step = _step(line)
                found[step.step] = step
        except (KeyError, TypeError, ValueError):
            broken.append(Broken(f"{LANES}:{number}", "is not a step's lanes"))
    kept: list[StepLanes] = []
    room = MOST_BYTES
    for step in sorted(found, reverse=True)[:MOST_STEPS]:
        room -= len(json.dumps(found[step].lanes))
        if room < 0:
            break
        kept.append(found[step])
    return WorkLanes(tuple(reversed(kept)), len(found) - len(kept), tuple(broken))


def profile_files(run: Path) -> dict[int, list[str]]:
    """The profiles of trainer.profile_steps: by step, their paths within the run's folder."""
    found: dict[int, list[str]] = {}
    for path in sorted((run / PROFILES).glob("step_*/*.json.gz"))[:MOST_PROFILES]:
        number = path.parent.name.removeprefix("step_")
        if number.isdecimal() and not path.name.startswith("."):
            found.setdefault(int(number), []).append(path.relative_to(run).as_posix())
    return found


def _step(line: Mapping[str, Any]) -> StepLanes:
    start_s, seconds = finite(line["start_s"]), finite(line["seconds"])
    if not is_step(line["step"]) or start_s is None or seconds is None or seconds < 0:
        raise ValueError("no step")
    lanes = [
        [str(worker)[:WORKER_CHARS], [_span(*span) for span in spans]] for worker, spans in dict(line["lanes"]).items()
    ]
    return StepLanes(line["step"], start_s, seconds, tuple(lanes))


def _span(work: Any, start: Any, end: Any) -> list[Any]:
    first, last = finite(start), finite(end)
    if first is None or last is None:
        raise ValueError("not a time")
    return [str(work)[:WORK_CHARS], first, max(first, last)]
