"""Who worked when over a step: a lane per worker, in lanes.jsonl; and how long engines and learners did not.

    {"step": 12, "start_s": 1.76e9, "seconds": 8.2, "lanes": {"rollout/0": [["rollout", 0.01, 3.4], …], "push": […]}}

Times within `lanes` are seconds from `start_s`, when the step before was reported; what began before that is below 0.
They are wall-clock times of the machines that the workers are on, as well as these agree. A step that is repeated
after a resume has a second line; the later one counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rl.tracking.lines import append
from rl.trajectory import WorkSpan

LANES = "lanes.jsonl"  # in a run's folder
PROFILES = "profiles"  # likewise: a folder per step that was profiled
MOST_SPANS = 64  # of a worker in a step; the shortest pauses between others are closed
MOST_LANES = 64  # in a line; of more workers of a kind some are left out, spread evenly
ENGINES, LEARNERS = "rollout", "learner"  # kinds of workers: what stands before the / of their names

Interval = tuple[float, float]  # start, end; seconds


def write_lanes(path: Path, step: int, spans: Sequence[WorkSpan], start_s: float, end_s: float) -> None:
    """Append the line of a step.

    Raises:
        OSError: it could not be written.
    """
    line = {"step": step, "start_s": round(start_s, 3), "seconds": round(end_s - start_s, 3)}
    append(path, json.dumps(line | {"lanes": lanes(spans, start_s)}, separators=(",", ":")) + "\n")


def profiles_of(run_dir: Path, step: int) -> Path:
    """Where the profiles of a step lie."""
    return run_dir / PROFILES / f"step_{step}"


def lanes(spans: Iterable[WorkSpan], start_s: float) -> dict[str, list[list[Any]]]:
    """{worker: [[what it did, start, end], …]}, seconds from `start_s`; bounded as MOST_SPANS and MOST_LANES say."""
    by_worker: dict[str, dict[str, list[Interval]]] = {}
    for span in spans:
        by_worker.setdefault(span.worker, {}).setdefault(span.work, []).append((span.start_s, span.end_s))
    made = {}
    for worker in _spread(sorted(by_worker, key=_natural)):
        found = [
            [work, round(first - start_s, 3), round(last - start_s, 3)]
            for work, intervals in by_worker[worker].items()
            for first, last in thinned(sorted(intervals), MOST_SPANS)
        ]
        made[worker] = sorted(found, key=lambda entry: entry[1])
    return made


def idle_shares(spans: Iterable[WorkSpan], workers: Sequence[str], start_s: float, end_s: float) -> dict[str, float]:
    """{"idle/engines", "idle/learners"}: the share of this time in which a worker of the kind had nothing to do.

    Args:
        workers: all there are, by name; one without a span was idle throughout.
    """
    intervals: dict[str, list[Interval]] = {worker: [] for worker in workers}
    for span in spans:
        if span.worker in intervals:
            intervals[span.worker].append((max(span.start_s, start_s), min(span.end_s, end_s)))
    shares = {}
    for name, kind in (("idle/engines", ENGINES), ("idle/learners", LEARNERS)):
        of_kind = [covered(found) for worker, found in intervals.items() if worker.partition("/")[0] == kind]
        if of_kind and end_s > start_s:
            shares[name] = 1.0 - sum(of_kind) / (len(of_kind) * (end_s - start_s))
    return shares


def covered(intervals: Iterable[Interval]) -> float:
    """Seconds within at least one of the intervals."""
    total, reached = 0.0, float("-inf")
    for first, last in sorted(intervals):
        total += max(0.0, last - max(first, reached))
        reached = max(reached, last)
    return total


def thinned(intervals: Sequence[Interval], most: int) -> list[Interval]:
    """At most so many intervals, of which the shortest pauses are closed. They are in order, and do not overlap."""
    excess = len(intervals) - most
    if excess <= 0:
        return list(intervals)
    pauses = sorted(range(1, len(intervals)), key=lambda index: intervals[index][0] - intervals[index - 1][1])
    closed = set(pauses[:excess])
    kept: list[Interval] = []
    for index, (first, last) in enumerate(intervals):
        if index in closed:
            kept[-1] = (kept[-1][0], max(kept[-1][1], last))
        else:
            kept.append((first, last))
    return kept


def _spread(workers: Sequence[str]) -> list[str]:
    """All workers, or of each kind some."""
    kinds: dict[str, list[str]] = {}
    for worker in workers:
        kinds.setdefault(worker.partition("/")[0], []).append(worker)
    kept = []
    for of_kind in kinds.values():
        room = min(len(of_kind), max(1, MOST_LANES // len(kinds)) if len(workers) > MOST_LANES else len(of_kind))
        kept += [of_kind[index * len(of_kind) // room] for index in range(room)]
    return kept


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """rollout/2 before rollout/10."""
    return [(piece.isdecimal(), int(piece) if piece.isdecimal() else 0, piece) for piece in re.split(r"(\d+)", name)]
