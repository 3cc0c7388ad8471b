"""What came of an experiment: violations, and how fast each fault type was detected and recovered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from rl.fault_injection.artifacts import Launch, RunArtifacts
from rl.fault_injection.experiment import print_line
from rl.fault_injection.recovery import RECOVERED, Recovery, not_injected
from rl.fault_injection.schedule import FAULT_TYPES

MAX_LISTED = 10  # violations of one invariant that are printed


@dataclass(frozen=True, slots=True)
class ExperimentResult:
    """What came of an experiment."""

    home: Path
    seconds: float  # from the first step to the end of the last launch
    steps: int
    artifacts: RunArtifacts
    recoveries: tuple[Recovery, ...]
    violations: Mapping[str, list[str]]  # by invariant

    @property
    def passed(self) -> bool:
        """No invariant was violated."""
        return not any(self.violations.values())

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        others = not_injected(self.artifacts, self.recoveries)
        return {
            "passed": self.passed,
            "seconds": round(self.seconds, 1),
            "steps": self.steps,
            "launches": len(self.artifacts.launches),
            "injected": len(self.artifacts.injections),
            "fault_types": {row.fault_type: asdict(row) for row in rows(self.artifacts, self.recoveries)},
            "not_injected": Counter(fault["kind"] for fault in others),
            "violations": {name: found for name, found in self.violations.items() if found},
            "held": [name for name, found in self.violations.items() if not found],
            "folder": str(self.home),
        }


@dataclass(frozen=True, slots=True)
class Row:
    """A fault type: how often it was injected, and how fast it was detected and recovered; seconds."""

    fault_type: str
    injected: int
    recovered: int
    detection_median_s: float | None
    detection_max_s: float | None
    recovery_median_s: float | None
    recovery_max_s: float | None


def rows(artifacts: RunArtifacts, matched: Sequence[Recovery]) -> list[Row]:
    """Per fault type that was injected, in the order of FAULT_TYPES."""
    injected = Counter(injection.fault_type for injection in artifacts.injections)
    return [_row(name, injected[name], artifacts, matched) for name in FAULT_TYPES if injected[name]]


def print_result(result: ExperimentResult, console: Console) -> None:
    """The table of faults, then what holds and what does not."""
    table = Table(box=None, pad_edge=False)
    table.add_column("fault")
    for heading in ("injected", "recovered", "detected s", "max", "recovered s", "max"):
        table.add_column(heading, justify="right")
    for row in rows(result.artifacts, result.recoveries):
        seconds = (row.detection_median_s, row.detection_max_s, row.recovery_median_s, row.recovery_max_s)
        cells = ("" if s is None else f"{s:.1f}" for s in seconds)
        table.add_row(row.fault_type, str(row.injected), str(row.recovered), *cells)
    console.print(table)
    for name, found in result.violations.items():
        print_line(console, f"{name}: {'held' if not found else f'violated {len(found)} times'}")
        for violation in found[:MAX_LISTED]:
            print_line(console, f"  {violation}")
    if others := not_injected(result.artifacts, result.recoveries):
        kinds = Counter(fault["kind"] for fault in others)
        listed = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
        print_line(console, f"recovered, but not injected: {listed}")
    counts = f"{result.steps} steps in {result.seconds:.0f} s, {len(result.artifacts.injections)} faults injected"
    print_line(console, f"{counts}: {'all invariants held' if result.passed else 'NOT all invariants held'}")
    print_line(console, f"files: {result.home}")


def _row(fault_type: str, injected: int, artifacts: RunArtifacts, matched: Sequence[Recovery]) -> Row:
    if FAULT_TYPES[fault_type].ends_the_run:
        times = [injection.time_s for injection in artifacts.injections if injection.fault_type == fault_type]
        restarts = [_restart_s(time_s, artifacts.launches) for time_s in times]
        detections, recovered = [], [seconds for seconds in restarts if seconds is not None]
        count = len(recovered)
    else:
        good = [one for one in matched if one.injection.fault_type == fault_type and one.outcome == RECOVERED]
        detections = [one.detection_s for one in good if one.detection_s is not None]
        recovered = [one.recovery_s for one in good if one.recovery_s is not None]
        count = len(good)
    return Row(fault_type, injected, count, *_median_and_max(detections), *_median_and_max(recovered))


def _restart_s(ended_s: float, launches: Sequence[Launch]) -> float | None:
    """Seconds from the end of a run to the first step that it reported after it was launched again."""
    firsts = [launch.first_step_s for launch in launches if launch.started_s >= ended_s and launch.first_step_s]
    return min(firsts) - ended_s if firsts else None


def _median_and_max(seconds: Sequence[float]) -> tuple[float | None, float | None]:
    return (round(median(seconds), 2), round(max(seconds), 2)) if seconds else (None, None)
