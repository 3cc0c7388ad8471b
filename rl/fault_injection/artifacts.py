"""What a run under injected faults leaves on disk, read once: metrics, records, faults, injections, launches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rl.checkpoint.store import CHECKPOINTS
from rl.fault_injection.inject import INJECTIONS, Injection
from rl.report.run_files import Broken, read_json_lines
from rl.tracking.faults import read_faults
from rl.trajectory import VideoTask

LAUNCHES = "launches.jsonl"  # one line per launch
BY_FAULT, STOPPED, BY_ITSELF, HUNG = "by an injected fault", "by SIGTERM", "by itself", "hung"  # how a launch ended

Line = Mapping[str, Any]  # of metrics.jsonl


class RecordedTrajectory(NamedTuple):
    """What a record says of one trajectory."""

    group: int
    sibling: int
    task_id: str
    versions: frozenset[int]  # of the weights its turns were sampled with
    failed: str  # why it has no rewards; empty: it has


@dataclass(frozen=True, slots=True)
class Launch:
    """One start of the run, and its end."""

    started_s: float
    first_step_s: float  # when it had reported its first step; 0: never
    ended_s: float
    ended: str  # BY_FAULT | STOPPED | BY_ITSELF | HUNG
    exit_code: int
    stop_s: float  # from SIGTERM to the end; 0: none was sent
    reported: int  # last step in metrics.jsonl
    saved: int  # steps in the newest whole checkpoint
    left: list[int]  # processes that outlived it by more than a moment


@dataclass(frozen=True, slots=True)
class RunArtifacts:
    """All files of an experiment."""

    lines: tuple[Line, ...]  # of training steps
    records: Mapping[int, tuple[RecordedTrajectory, ...]]  # by step
    faults: tuple[Mapping[str, Any], ...]  # of faults.jsonl
    injections: tuple[Injection, ...]
    launches: tuple[Launch, ...]
    drafts: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()  # lines that are not JSON

    @property
    def longest_step_s(self) -> float:
        """Between two reports, at most."""
        return max((float(line.get("seconds/step", 0.0)) for line in self.lines), default=0.0)


@dataclass(frozen=True, slots=True)
class Rules:
    """What the configuration promises of the artifacts."""

    tasks_for: Callable[[int, int], Sequence[VideoTask]]  # (step from 0, attempt)
    group_size: int
    warn_nat: float
    stop_grace_s: float
    hung_s: Mapping[str, float]  # by role: how long a stopped worker with work may go undetected
    node_lost_s: float = 0.0  # until a silent node counts as dead
    max_lag: int = 0  # pushes by which the weights that sampled a step may be behind those that learned from it


def read_artifacts(home: Path, run_dir: Path) -> RunArtifacts:
    """Everything the invariants look at.

    Args:
        home: with chaos.jsonl and launches.jsonl.
    """
    broken: list[str] = []
    lines = tuple(line for line in _lines(run_dir / "metrics.jsonl", broken) if "policy/version" in line)
    records = {
        int(path.stem.removeprefix("step_")): tuple(_trajectory(record) for record in _lines(path, broken))
        for path in sorted((run_dir / "trajectories").glob("step_*.jsonl"))
    }
    injections = tuple(Injection(**line) for line in _lines(home / INJECTIONS, broken))
    launches = tuple(Launch(**line) for line in _lines(home / LAUNCHES, broken))
    drafts = tuple(path.name for path in sorted((run_dir / CHECKPOINTS).glob(".draft_*")))
    return RunArtifacts(lines, records, tuple(read_faults(run_dir)), injections, launches, drafts, tuple(broken))


def _lines(path: Path, broken: list[str]) -> list[dict[str, Any]]:
    """The lines of a file that may not exist; broken ones go to `broken`."""
    lines = [line for line, _ in read_json_lines(path, path.parent)] if path.is_file() else []
    broken += [f"{line.place}: {line.reason}" for line in lines if isinstance(line, Broken)]
    return [line for line in lines if not isinstance(line, Broken)]


def _trajectory(record: Mapping[str, Any]) -> RecordedTrajectory:
    versions = frozenset(turn["policy_version"] for turn in record["turns"])
    failed = record["rewards"].get("failed", {}).get("cause", "")
    return RecordedTrajectory(record["group"], record["sibling"], record["task"]["id"], versions, failed)
