"""What must hold of a run however it was struck: each invariant a pure function of what lies on disk.

| invariant | holds if |
|---|---|
| steps | every step is in metrics.jsonl exactly once |
| tasks | every step played exactly the tasks of the stream, each with all its siblings, none twice |
| versions | all turns of a step were sampled with that step's weights, and versions grow by one a step |
| parity | engine and learner agree to within parity.warn_nat at every step |
| rewards | no trajectory is without a verdict, unless a fault explains it |
| faults | every fault that struck a worker has its line in faults.jsonl, noticed in time |
| endings | launches ended as they were made to: saved within the grace at SIGTERM, and the last with exit code 0 |
| leftovers | no process of a launch outlived it, no draft of a checkpoint is left |

Legend: N steps of the run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rl.checkpoint.store import CHECKPOINTS
from rl.fault_injection.schedule import KINDS, STOP
from rl.fault_injection.targets import CHAOS, Strike
from rl.report.run_files import Broken, read_json_lines
from rl.tracking.faults import read_faults
from rl.trajectory import VideoTask

LAUNCHES = "launches.jsonl"  # one line per launch
STRUCK, STOPPED, BY_ITSELF, HUNG = "struck", "asked to stop", "by itself", "hung"  # how a launch ended
TERMINATED = 143  # exit code after SIGTERM
NOTICED_S = 10.0  # a process that is gone, by whoever looks after it
WRITTEN_S = 120.0  # from when a fault must have been noticed until it is mended and the step that says so is reported
EXIT_S = 30.0  # beyond the grace, for Python to end
CLOCK_S = 0.5  # between two readings of the clock by two processes
MOST = 5  # violations of one kind that are told one by one

EXPLAINS = {"reward": ("worker_died", "timeout"), "decoder": ("video_error",)}  # who was struck -> failed verdicts
NOT_STRUCK, HANGS = {"recycled", "frames_lost"}, "worker_hung"  # kinds of faults
MENDED, ENDED, LATE, UNNOTICED, HARMLESS = "mended", "the run ended first", "late", "not noticed", "harmless"

Line = Mapping[str, Any]  # of metrics.jsonl


class Sibling(NamedTuple):
    """What a record says of one trajectory."""

    group: int
    sibling: int
    task_id: str
    versions: frozenset[int]  # of the weights its turns were sampled with
    failed: str  # why it has no verdict; empty: it has one


@dataclass(frozen=True, slots=True)
class Launch:
    """One start of the run, and its end."""

    started_s: float
    first_step_s: float  # when it had reported its first step; 0: never
    ended_s: float
    ended: str  # STRUCK | STOPPED | BY_ITSELF | HUNG
    exit_code: int
    stop_s: float  # from SIGTERM to the end; 0: none was sent
    reported: int  # last step in metrics.jsonl
    saved: int  # steps in the newest whole checkpoint
    left: list[int]  # processes that outlived it by more than a moment


@dataclass(frozen=True, slots=True)
class Evidence:
    """What lies on disk after a run, read once."""

    lines: tuple[Line, ...]  # of training steps
    records: Mapping[int, tuple[Sibling, ...]]  # by step
    faults: tuple[Mapping[str, Any], ...]
    strikes: tuple[Strike, ...]
    launches: tuple[Launch, ...]
    drafts: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()  # lines that are no JSON

    @property
    def longest_step_s(self) -> float:
        """Between two reports, at most."""
        return max((float(line.get("seconds/step", 0.0)) for line in self.lines), default=0.0)


@dataclass(frozen=True, slots=True)
class Rules:
    """What the evidence is held against."""

    tasks_for: Callable[[int, int], Sequence[VideoTask]]  # (step from 0, attempt)
    group_size: int
    warn_nat: float
    stop_grace_s: float
    hung_s: Mapping[str, float]  # by kind of worker: how long one that is stopped may go unnoticed while it has work


@dataclass(frozen=True, slots=True)
class Mend:
    """What became of a strike at a worker."""

    strike: Strike
    outcome: str  # MENDED | ENDED | LATE | UNNOTICED | HARMLESS (a decoder nobody asked again)
    detection_s: float | None = None
    recovery_s: float | None = None
    line: int | None = None  # of faults.jsonl, from 0


def read_evidence(home: Path, run_dir: Path) -> Evidence:
    """Everything the invariants look at.

    Args:
        home: with chaos.jsonl and launches.jsonl.
    """
    broken: list[str] = []
    lines = tuple(line for line in _lines(run_dir / "metrics.jsonl", broken) if "policy/version" in line)
    records = {
        int(path.stem.removeprefix("step_")): tuple(_sibling(record) for record in _lines(path, broken))
        for path in sorted((run_dir / "trajectories").glob("step_*.jsonl"))
    }
    strikes = tuple(Strike(**line) for line in _lines(home / CHAOS, broken))
    launches = tuple(Launch(**line) for line in _lines(home / LAUNCHES, broken))
    drafts = tuple(path.name for path in sorted((run_dir / CHECKPOINTS).glob(".draft_*")))
    return Evidence(lines, records, tuple(read_faults(run_dir)), strikes, launches, drafts, tuple(broken))


def judge(evidence: Evidence, rules: Rules, steps: int) -> dict[str, list[str]]:
    """Violations by invariant; none at all is what one hopes for.

    Args:
        steps: N.
    """
    return {
        "steps": every_step_once(evidence, steps),
        "tasks": every_task_once(evidence, rules, steps),
        "versions": versions_grow(evidence),
        "parity": parity_held(evidence, rules),
        "rewards": verdicts_given(evidence, rules),
        "faults": faults_mended(evidence, rules),
        "endings": endings_kept(evidence, rules),
        "leftovers": nothing_left(evidence),
    }


def every_step_once(evidence: Evidence, steps: int) -> list[str]:
    """Steps 1..N, each in one line, in order."""
    times = Counter(line["step"] for line in evidence.lines)
    wrong = [f"step {step} is reported {times[step]} times" for step in range(1, steps + 1) if times[step] != 1]
    wrong += [f"step {step} was never due" for step in sorted(times) if not 1 <= step <= steps]
    order = [line["step"] for line in evidence.lines]
    return [*wrong, *(["steps are out of order"] if order != sorted(order) else []), *evidence.broken]


def every_task_once(evidence: Evidence, rules: Rules, steps: int) -> list[str]:
    """The tasks of the stream in their order, G siblings each."""
    wrong = []
    for step in range(1, steps + 1):
        due = [task.task_id for task in rules.tasks_for(step - 1, 0)]
        expected = [(g, s, name) for g, name in enumerate(due) for s in range(rules.group_size)]
        played = [(one.group, one.sibling, one.task_id) for one in evidence.records.get(step, ())]
        if played == expected:
            continue
        missing, extra = Counter(expected) - Counter(played), Counter(played) - Counter(expected)
        parts = [
            f"{verb} {_few(which)}" for verb, which in (("lost", missing), ("repeated or foreign", extra)) if which
        ]
        wrong.append(f"step {step}: {'; '.join(parts) or 'in another order'}")
    return wrong


def versions_grow(evidence: Evidence) -> list[str]:
    """Step s is sampled with version v and pushes v + 1, with which step s + 1 is sampled."""
    wrong, before = [], None
    for line in evidence.lines:
        step, pushed = line["step"], int(line["policy/version"])
        if before is not None and pushed != before + 1:
            wrong.append(f"step {step} pushed version {pushed} after {before}")
        sampled = {version for one in evidence.records.get(step, ()) for version in one.versions}
        if sampled - {pushed - 1}:
            wrong.append(f"step {step} was sampled with versions {sorted(sampled)}, not {pushed - 1} alone")
        before = pushed
    return wrong


def parity_held(evidence: Evidence, rules: Rules) -> list[str]:
    """The largest difference of log-probs, per segment; what is not a number is no agreement."""
    return [
        f"step {line['step']}: {name} is {value} nat (parity.warn_nat={rules.warn_nat:g})"
        for line in evidence.lines
        for name, value in line.items()
        if name.startswith("parity/max") and not float(value) <= rules.warn_nat
    ]


def verdicts_given(evidence: Evidence, rules: Rules) -> list[str]:
    """Who has no verdict was in the hands of somebody who was struck."""
    wrong = []
    ended = {line["step"]: float(line["time_s"]) for line in evidence.lines}
    for step, siblings in sorted(evidence.records.items()):
        for cause, count in sorted(Counter(one.failed for one in siblings if one.failed).items()):
            if not any(
                cause in EXPLAINS.get(KINDS[strike.kind].whom, ())
                and strike.time_s <= ended.get(step, 0.0)
                and ended[step] <= strike.time_s + _limit(strike, evidence, rules) + evidence.longest_step_s
                for strike in evidence.strikes
            ):
                wrong.append(f"step {step}: {count} trajectories have no verdict ({cause}), and no fault explains it")
    return wrong


def faults_mended(evidence: Evidence, rules: Rules) -> list[str]:
    """Every strike at a worker was noticed within its time, unless the launch ended before it could be told."""
    return [
        f"{mend.strike.kind} of process {mend.strike.pid} ({mend.strike.title}): {mend.outcome}"
        + (f", after {mend.detection_s:.1f} s" if mend.detection_s is not None else "")
        for mend in mends(evidence, rules)
        if mend.outcome in (LATE, UNNOTICED)
    ]


def mends(evidence: Evidence, rules: Rules) -> list[Mend]:
    """What became of every strike at a worker, oldest first."""
    used: set[int] = set()
    return [
        _mend(strike, evidence, rules, used)
        for strike in sorted(evidence.strikes, key=lambda strike: strike.time_s)
        if not KINDS[strike.kind].ends_the_run
    ]


def uninvited(evidence: Evidence, mended: Sequence[Mend]) -> list[Mapping[str, Any]]:
    """Faults in faults.jsonl that no strike explains: no violation, for they were mended, but worth a look."""
    explained = {mend.line for mend in mended}
    return [fault for index, fault in enumerate(evidence.faults) if index not in explained]


def endings_kept(evidence: Evidence, rules: Rules) -> list[str]:
    """How each launch ended."""
    wrong = []
    for number, launch in enumerate(evidence.launches, start=1):
        is_last = number == len(evidence.launches)
        if launch.ended == BY_ITSELF and not (is_last and launch.exit_code == 0):
            wrong.append(f"launch {number} ended by itself with exit code {launch.exit_code}")
        if launch.ended == HUNG:
            wrong.append(f"launch {number} made no step any more after step {launch.reported} and was killed")
        if launch.ended == STOPPED:
            if launch.exit_code != TERMINATED:
                wrong.append(f"launch {number} ended with exit code {launch.exit_code} after SIGTERM")
            if launch.stop_s > rules.stop_grace_s + EXIT_S:
                wrong.append(f"launch {number} took {launch.stop_s:.0f} s to end after SIGTERM")
            if launch.first_step_s and launch.saved != launch.reported:
                wrong.append(f"launch {number} had done {launch.reported} steps at SIGTERM, but saved {launch.saved}")
    if not evidence.launches or evidence.launches[-1].ended != BY_ITSELF:
        wrong.append("the run was never finished")
    return wrong


def nothing_left(evidence: Evidence) -> list[str]:
    """Processes and drafts."""
    wrong = [
        f"launch {number} left processes {launch.left}"
        for number, launch in enumerate(evidence.launches, start=1)
        if launch.left
    ]
    return [*wrong, *(f"{draft} is left of a save" for draft in evidence.drafts)]


def same_as(evidence: Evidence, reference: Iterable[Line], steps: int) -> list[str]:
    """The fingerprints of steps 1..`steps` are those of a run that nothing happened to."""
    ours, theirs = ({line["step"]: _fingerprints(line) for line in lines} for lines in (evidence.lines, reference))
    wrong = []
    for step in range(1, steps + 1):
        one, other = ours.get(step, {}), theirs.get(step, {})
        if one != other or not one:
            parted = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
            wrong.append(f"step {step} is not that of the run without faults: {', '.join(parted) or 'no fingerprints'}")
    return wrong


def _mend(strike: Strike, evidence: Evidence, rules: Rules, used: set[int]) -> Mend:
    whom = KINDS[strike.kind].whom
    if whom == "decoder":
        return _mend_of_decoder(strike, evidence, used)
    until = _until(strike, evidence)
    told = [
        (index, fault)
        for index, fault in enumerate(evidence.faults)
        if _is_told_by(fault) == whom and (whom == "learner" or strike.worker in ("", fault["worker"]))
    ]
    after = [(i, f) for i, f in told if strike.time_s - CLOCK_S <= f["detected_s"] <= until]
    shared = [(i, f) for i, f in told if f["detected_s"] <= strike.time_s <= f["detected_s"] + f["recovery_s"]]
    if whom == "learner":  # ranks are lost and rebuilt together
        shared += after
    is_stopped = KINDS[strike.kind].what == STOP
    fresh = sorted(  # of two, the one that looks like it
        ((i, f) for i, f in after if i not in used), key=lambda pair: (pair[1]["kind"] == HANGS) != is_stopped
    )
    limit_s = _limit(strike, evidence, rules)
    for index, fault in [
        *(pair for pair in fresh if pair[1]["detected_s"] <= strike.time_s + limit_s),
        *shared,
        *fresh,
    ]:
        used.add(index)
        detection_s = max(fault["detected_s"] - strike.time_s, 0.0)
        return Mend(strike, MENDED if detection_s <= limit_s else LATE, detection_s, fault["recovery_s"], index)
    return Mend(strike, ENDED if until <= strike.time_s + limit_s + WRITTEN_S else UNNOTICED)


def _mend_of_decoder(strike: Strike, evidence: Evidence, used: set[int]) -> Mend:
    """It is missed when it is next asked, whenever that is."""
    until = _until(strike, evidence)
    for index, fault in enumerate(evidence.faults):
        is_after = strike.time_s - CLOCK_S <= fault["detected_s"] <= until
        if index not in used and is_after and _is_told_by(fault) == "decoder":
            used.add(index)
            return Mend(strike, MENDED, max(fault["detected_s"] - strike.time_s, 0.0), fault["recovery_s"], index)
    return Mend(strike, HARMLESS)


def _until(strike: Strike, evidence: Evidence) -> float:
    """When the launch that was struck ended."""
    return next((one.ended_s for one in evidence.launches if one.started_s <= strike.time_s <= one.ended_s), math.inf)


def _is_told_by(fault: Mapping[str, Any]) -> str:
    """What kind of process a fault is of: that of a decoder is told by the worker it belongs to."""
    if fault["kind"] in NOT_STRUCK:
        return ""
    return "decoder" if fault["kind"].startswith("decoder_") else fault["worker"].partition("/")[0]


def _limit(strike: Strike, evidence: Evidence, rules: Rules) -> float:
    """Seconds within which a strike must be noticed; longer while the run is busy with another one."""
    own_s = _own_limit(strike, evidence, rules)
    others = [
        _own_limit(other, evidence, rules)
        for other in evidence.strikes
        if other is not strike
        and not KINDS[other.kind].ends_the_run
        and other.time_s <= strike.time_s + own_s
        and strike.time_s <= other.time_s + _own_limit(other, evidence, rules)
    ]
    return own_s + max(others, default=0.0)


def _own_limit(strike: Strike, evidence: Evidence, rules: Rules) -> float:
    """A rollout worker is looked after all the time, the others when they are next needed."""
    mischief = KINDS[strike.kind]
    if mischief.what == STOP:
        return rules.hung_s[mischief.whom] + evidence.longest_step_s + NOTICED_S
    return NOTICED_S if mischief.whom == "rollout" else NOTICED_S + evidence.longest_step_s


def _lines(path: Path, broken: list[str]) -> list[dict[str, Any]]:
    """The lines of a file that may not be there; those that are broken are told apart."""
    lines = [line for line, _ in read_json_lines(path, path.parent)] if path.is_file() else []
    broken += [f"{line.place}: {line.reason}" for line in lines if isinstance(line, Broken)]
    return [line for line in lines if not isinstance(line, Broken)]


def _sibling(record: Mapping[str, Any]) -> Sibling:
    versions = frozenset(turn["policy_version"] for turn in record["turns"])
    failed = record["rewards"].get("failed", {}).get("cause", "")
    return Sibling(record["group"], record["sibling"], record["task"]["id"], versions, failed)


def _fingerprints(line: Line) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name.startswith("state/")}


def _few(counted: Counter[tuple[int, int, str]]) -> str:
    names = [f"{name}[{sibling}]" for _, sibling, name in counted.elements()]
    return ", ".join(names[:MOST]) + (f" and {len(names) - MOST} more" if len(names) > MOST else "")
