"""What must hold of a run whatever faults were injected: each invariant a pure function of what lies on disk.

| invariant | holds if |
|---|---|
| steps | every step is in metrics.jsonl exactly once |
| tasks | every step rolled out exactly the tasks of the stream, each with all its siblings, none twice |
| versions | turns of a step were sampled with its weights, or older ones within the lag; they grow by one a step |
| parity | engine and learner agree to within parity.warn_nat at every step |
| rewards | no trajectory is without rewards, unless an injected fault explains it |
| faults | every fault injected into a worker has its line in faults.jsonl, detected in time |
| endings | launches ended as expected: saved within the grace at SIGTERM, and the last with exit code 0 |
| leftovers | no process of a launch outlived it, no draft of a checkpoint is left |

Legend: N steps of the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from rl.fault_injection.artifacts import BY_ITSELF, HUNG, STOPPED, Launch, Line, Rules, RunArtifacts
from rl.fault_injection.recovery import LATE, UNDETECTED, detection_limit_s, recoveries
from rl.fault_injection.schedule import FAULT_TYPES

TERMINATED = 143  # exit code after SIGTERM
EXIT_S = 30.0  # beyond the grace, for Python to end
MAX_NAMED = 5  # trajectories of one violation that are named
EXPLAINS = {  # target -> causes of missing rewards
    "reward": ("worker_died", "timeout"),
    "decoder": ("video_error",),
    "node": ("worker_died", "timeout"),
    "store": ("timeout",),
}


def check_invariants(artifacts: RunArtifacts, rules: Rules, steps: int) -> dict[str, list[str]]:
    """Violations by invariant.

    Args:
        steps: N.
    """
    return {
        "steps": every_step_once(artifacts, steps),
        "tasks": every_task_once(artifacts, rules, steps),
        "versions": versions_are_consecutive(artifacts, rules),
        "parity": parity_within_limit(artifacts, rules),
        "rewards": every_trajectory_scored(artifacts, rules),
        "faults": every_fault_detected(artifacts, rules),
        "endings": launches_ended_as_expected(artifacts, rules),
        "leftovers": no_leftovers(artifacts),
    }


def every_step_once(artifacts: RunArtifacts, steps: int) -> list[str]:
    """Steps 1..N, each in one line, in order."""
    times = Counter(line["step"] for line in artifacts.lines)
    wrong = [f"step {step} is reported {times[step]} times" for step in range(1, steps + 1) if times[step] != 1]
    wrong += [f"step {step} was never due" for step in sorted(times) if not 1 <= step <= steps]
    order = [line["step"] for line in artifacts.lines]
    return [*wrong, *(["steps are out of order"] if order != sorted(order) else []), *artifacts.broken]


def every_task_once(artifacts: RunArtifacts, rules: Rules, steps: int) -> list[str]:
    """The tasks of the stream in their order, G siblings each."""
    wrong = []
    for step in range(1, steps + 1):
        due = [task.task_id for task in rules.tasks_for(step - 1, 0)]
        expected = [(g, s, name) for g, name in enumerate(due) for s in range(rules.group_size)]
        recorded = [(one.group, one.sibling, one.task_id) for one in artifacts.records.get(step, ())]
        if recorded == expected:
            continue
        missing, extra = Counter(expected) - Counter(recorded), Counter(recorded) - Counter(expected)
        parts = [
            f"{verb} {_names(which)}" for verb, which in (("lost", missing), ("repeated or foreign", extra)) if which
        ]
        wrong.append(f"step {step}: {'; '.join(parts) or 'in another order'}")
    return wrong


def versions_are_consecutive(artifacts: RunArtifacts, rules: Rules) -> list[str]:
    """Step s is sampled with version v, or up to the lag before it, and pushes v + 1, with which step s + 1 learns;
    where a step had nothing to learn, nothing is pushed and the version stays."""
    wrong, before = [], None
    for line in artifacts.lines:
        step, pushed = line["step"], int(line["policy/version"])
        sampled_with = pushed - bool(line.get("update/optimizer_steps", 1))
        if before is not None and sampled_with != before:
            wrong.append(f"step {step} pushed version {pushed} after {before}")
        sampled = {version for one in artifacts.records.get(step, ()) for version in one.versions}
        allowed = {max(0, sampled_with - behind) for behind in range(rules.max_lag + 1)}
        if sampled - allowed:
            due = " or ".join(map(str, sorted(allowed)))
            wrong.append(f"step {step} was sampled with versions {sorted(sampled)}, not {due} alone")
        before = pushed
    return wrong


def parity_within_limit(artifacts: RunArtifacts, rules: Rules) -> list[str]:
    """The largest difference of log-probs, per segment; what is not a number is a violation."""
    return [
        f"step {line['step']}: {name} is {value} nat (parity.warn_nat={rules.warn_nat:g})"
        for line in artifacts.lines
        for name, value in line.items()
        if name.startswith("parity/max") and not float(value) <= rules.warn_nat
    ]


def every_trajectory_scored(artifacts: RunArtifacts, rules: Rules) -> list[str]:
    """A trajectory lacks rewards only where a fault was injected into a process that it needed."""
    wrong = []
    ended = {line["step"]: float(line["time_s"]) for line in artifacts.lines}
    for step, trajectories in sorted(artifacts.records.items()):
        for cause, count in sorted(Counter(one.failed for one in trajectories if one.failed).items()):
            if not _is_explained(cause, ended.get(step), artifacts, rules):
                wrong.append(
                    f"step {step}: {count} trajectories have no rewards ({cause}), and no injected fault explains it"
                )
    return wrong


def every_fault_detected(artifacts: RunArtifacts, rules: Rules) -> list[str]:
    """Every fault injected into a worker was detected in time, unless the launch ended before it could be reported."""
    return [
        f"{recovery.injection.fault_type} of process {recovery.injection.pid} ({recovery.injection.title}): "
        + recovery.outcome
        + (f", after {recovery.detection_s:.1f} s" if recovery.detection_s is not None else "")
        for recovery in recoveries(artifacts, rules)
        if recovery.outcome in (LATE, UNDETECTED)
    ]


def launches_ended_as_expected(artifacts: RunArtifacts, rules: Rules) -> list[str]:
    """Only the last launch ends by itself, with exit code 0; at SIGTERM a launch saves all its steps in time."""
    wrong = []
    for number, launch in enumerate(artifacts.launches, start=1):
        is_last = number == len(artifacts.launches)
        if launch.ended == BY_ITSELF and not (is_last and launch.exit_code == 0):
            wrong.append(f"launch {number} ended by itself with exit code {launch.exit_code}")
        if launch.ended == HUNG:
            wrong.append(f"launch {number} made no step any more after step {launch.reported} and was killed")
        if launch.ended == STOPPED:
            wrong += _stopped_wrongly(number, launch, rules)
    if not artifacts.launches or artifacts.launches[-1].ended != BY_ITSELF:
        wrong.append("the run was never finished")
    return wrong


def no_leftovers(artifacts: RunArtifacts) -> list[str]:
    """Processes and drafts."""
    wrong = [
        f"launch {number} left processes {launch.left}"
        for number, launch in enumerate(artifacts.launches, start=1)
        if launch.left
    ]
    return [*wrong, *(f"{draft} is left of a save" for draft in artifacts.drafts)]


def matches_reference(artifacts: RunArtifacts, reference: Iterable[Line], steps: int) -> list[str]:
    """The fingerprints of steps 1..`steps` are those of a run without faults."""
    ours, theirs = ({line["step"]: _fingerprints(line) for line in lines} for lines in (artifacts.lines, reference))
    wrong = []
    for step in range(1, steps + 1):
        one, other = ours.get(step, {}), theirs.get(step, {})
        if one != other or not one:
            differing = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
            wrong.append(
                f"step {step} differs from the run without faults: {', '.join(differing) or 'no fingerprints'}"
            )
    return wrong


def _is_explained(cause: str, ended_s: float | None, artifacts: RunArtifacts, rules: Rules) -> bool:
    """Whether a fault was injected before a step ended that can have cost trajectories their rewards for this cause."""
    return ended_s is not None and any(
        cause in EXPLAINS.get(FAULT_TYPES[injection.fault_type].target, ())
        and injection.time_s <= ended_s
        and ended_s <= injection.time_s + detection_limit_s(injection, artifacts, rules) + artifacts.longest_step_s
        for injection in artifacts.injections
    )


def _stopped_wrongly(number: int, launch: Launch, rules: Rules) -> list[str]:
    wrong = []
    if launch.exit_code != TERMINATED:
        wrong.append(f"launch {number} ended with exit code {launch.exit_code} after SIGTERM")
    if launch.stop_s > rules.stop_grace_s + EXIT_S:
        wrong.append(f"launch {number} took {launch.stop_s:.0f} s to end after SIGTERM")
    if launch.first_step_s and launch.saved != launch.reported:
        wrong.append(f"launch {number} had done {launch.reported} steps at SIGTERM, but saved {launch.saved}")
    return wrong


def _fingerprints(line: Line) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name.startswith("state/")}


def _names(counted: Counter[tuple[int, int, str]]) -> str:
    names = [f"{name}[{sibling}]" for _, sibling, name in counted.elements()]
    return ", ".join(names[:MAX_NAMED]) + (f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else "")
