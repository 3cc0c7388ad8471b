"""Which line of faults.jsonl tells of which injected fault, and whether the fault was detected in time.

Only faults that the run has to survive are matched; one that ends the run is recovered by the next launch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl.fault_injection.artifacts import Rules, RunArtifacts
from rl.fault_injection.cluster_under_test import NO_WORKERS
from rl.fault_injection.inject import Injection
from rl.fault_injection.schedule import FAULT_TYPES, PASSES_S, STOP

DETECTION_S = 10.0  # for the owner of a process to see that it is gone
REPORT_S = 120.0  # from when a fault must have been detected until the step that reports its recovery
CLOCK_S = 0.5  # between two readings of the clock by two processes
NEVER_INJECTED, HANG = {"recycled", "frames_lost"}, "worker_hung"  # kinds of faults in faults.jsonl

LOST_WITH_NODE = ("rollout", "learner")  # whose loss is always noticed; a reward worker's when it is next asked

RECOVERED, RUN_ENDED, LATE = "recovered", "the run ended first", "detected late"
UNDETECTED, NO_EFFECT = "not detected", "no effect"


@dataclass(frozen=True, slots=True)
class Recovery:
    """What became of a fault injected into a process of a run that goes on."""

    injection: Injection
    outcome: str  # RECOVERED | RUN_ENDED | LATE | UNDETECTED | NO_EFFECT (a decoder not needed again, an empty node)
    detection_s: float | None = None
    recovery_s: float | None = None
    line: int | None = None  # of faults.jsonl, from 0
    more: tuple[int, ...] = ()  # lines: of the other workers of a node


def recoveries(artifacts: RunArtifacts, rules: Rules) -> list[Recovery]:
    """What became of every fault injected into one process, oldest first."""
    used: set[int] = set()
    return [
        _recovery(injection, artifacts, rules, used)
        for injection in sorted(artifacts.injections, key=lambda injection: injection.time_s)
        if not FAULT_TYPES[injection.fault_type].ends_the_run
    ]


def not_injected(artifacts: RunArtifacts, matched: Sequence[Recovery]) -> list[Mapping[str, Any]]:
    """Faults in faults.jsonl that no injection explains: recovered, so no violation, but worth reading."""
    explained = {line for recovery in matched for line in (recovery.line, *recovery.more)}
    return [fault for index, fault in enumerate(artifacts.faults) if index not in explained]


def detection_limit_s(injection: Injection, artifacts: RunArtifacts, rules: Rules) -> float:
    """Seconds within which a fault must be detected; longer while the run is busy with another one."""
    own_s = _own_limit_s(injection, artifacts, rules)
    others = [
        _own_limit_s(other, artifacts, rules)
        for other in artifacts.injections
        if other is not injection
        and not FAULT_TYPES[other.fault_type].ends_the_run
        and other.time_s <= injection.time_s + own_s
        and injection.time_s <= other.time_s + _own_limit_s(other, artifacts, rules)
    ]
    return own_s + max(others, default=0.0)


def _own_limit_s(injection: Injection, artifacts: RunArtifacts, rules: Rules) -> float:
    """Rollout workers are watched all the time, the others when they are next needed."""
    fault_type = FAULT_TYPES[injection.fault_type]
    if fault_type.needs_nodes:
        return rules.node_lost_s + PASSES_S + artifacts.longest_step_s + DETECTION_S
    if fault_type.action == STOP:
        return rules.hung_s[fault_type.target] + artifacts.longest_step_s + DETECTION_S
    return DETECTION_S if fault_type.target == "rollout" else DETECTION_S + artifacts.longest_step_s


def _recovery(injection: Injection, artifacts: RunArtifacts, rules: Rules, used: set[int]) -> Recovery:
    target = FAULT_TYPES[injection.fault_type].target
    if FAULT_TYPES[injection.fault_type].passes:
        return _passed(injection, artifacts)
    if target == "node":
        return _node_recovery(injection, artifacts, rules, used)
    if target == "decoder":
        return _decoder_recovery(injection, artifacts, used)
    until, limit_s = _end_of_launch(injection, artifacts), detection_limit_s(injection, artifacts, rules)
    candidates = [
        (index, fault)
        for index, fault in enumerate(artifacts.faults)
        if _role_of(fault) == target and (target == "learner" or injection.worker in ("", fault["worker"]))
    ]
    after = [(i, f) for i, f in candidates if injection.time_s - CLOCK_S <= f["detected_s"] <= until]
    shared = [(i, f) for i, f in candidates if f["detected_s"] <= injection.time_s <= f["detected_s"] + f["recovery_s"]]
    if target == "learner":  # ranks are lost and rebuilt together
        shared += after
    is_stopped = FAULT_TYPES[injection.fault_type].action == STOP
    fresh = sorted(  # of two, the one of the right kind
        ((i, f) for i, f in after if i not in used), key=lambda pair: (pair[1]["kind"] == HANG) != is_stopped
    )
    in_time = [(i, f) for i, f in fresh if f["detected_s"] <= injection.time_s + limit_s]
    for index, fault in [*in_time, *shared, *fresh]:
        used.add(index)
        detection_s = max(fault["detected_s"] - injection.time_s, 0.0)
        outcome = RECOVERED if detection_s <= limit_s else LATE
        return Recovery(injection, outcome, detection_s, fault["recovery_s"], index)
    return Recovery(injection, RUN_ENDED if until <= injection.time_s + limit_s + REPORT_S else UNDETECTED)


def _decoder_recovery(injection: Injection, artifacts: RunArtifacts, used: set[int]) -> Recovery:
    """The loss of a decoder is detected when it is next needed, whenever that is."""
    until = _end_of_launch(injection, artifacts)
    for index, fault in enumerate(artifacts.faults):
        is_after = injection.time_s - CLOCK_S <= fault["detected_s"] <= until
        if index not in used and is_after and _role_of(fault) == "decoder":
            used.add(index)
            detection_s = max(fault["detected_s"] - injection.time_s, 0.0)
            return Recovery(injection, RECOVERED, detection_s, fault["recovery_s"], index)
    return Recovery(injection, NO_EFFECT)


def _passed(injection: Injection, artifacts: RunArtifacts) -> Recovery:
    """What passes by itself is recovered with the next step after it."""
    over_s, until = injection.time_s + PASSES_S, _end_of_launch(injection, artifacts)
    steps = [float(line["time_s"]) for line in artifacts.lines if over_s <= float(line["time_s"]) <= until]
    if steps:
        return Recovery(injection, RECOVERED, recovery_s=min(steps) - over_s)
    return Recovery(injection, RUN_ENDED if until <= over_s + REPORT_S else UNDETECTED)


def _node_recovery(injection: Injection, artifacts: RunArtifacts, rules: Rules, used: set[int]) -> Recovery:
    """Engines and ranks of a lost node each have a line; the last to be noticed and to be back counts."""
    until, limit_s = _end_of_launch(injection, artifacts), detection_limit_s(injection, artifacts, rules)
    address, lost = injection.worker.partition("/")[2], [role for role in LOST_WITH_NODE if role in injection.note]
    if "learner" in lost:
        limit_s += rules.hung_s["learner"]  # ranks elsewhere may wait so long for it
    after = [
        (index, fault)
        for index, fault in enumerate(artifacts.faults)
        if index not in used and injection.time_s - CLOCK_S <= fault["detected_s"] <= until
    ]
    found = [(i, f) for i, f in after if (f.get("failure") or {}).get("node") == address]
    if "learner" in lost and not any(_role_of(fault) == "learner" for _, fault in found):
        found += [(i, f) for i, f in after if _role_of(f) == "learner"][:1]  # told by a rank elsewhere: all are lost
    noticed = {role: min((f["detected_s"] for _, f in found if _role_of(f) == role), default=None) for role in lost}
    if not found or None in noticed.values():
        if until <= injection.time_s + limit_s + REPORT_S:
            return Recovery(injection, RUN_ENDED)
        return Recovery(injection, NO_EFFECT if NO_WORKERS in injection.note else UNDETECTED)
    first, *more = (index for index, _ in found)
    used.update((first, *more))
    seen_s = max(noticed.values(), default=found[0][1]["detected_s"])
    detection_s = max(seen_s - injection.time_s, 0.0)
    back_s = max(fault["detected_s"] + fault["recovery_s"] for _, fault in found) - injection.time_s
    outcome = RECOVERED if detection_s <= limit_s else LATE
    return Recovery(injection, outcome, detection_s, back_s, first, tuple(more))


def _end_of_launch(injection: Injection, artifacts: RunArtifacts) -> float:
    """When the launch ended into which the fault was injected; time.time()."""
    return next(
        (one.ended_s for one in artifacts.launches if one.started_s <= injection.time_s <= one.ended_s), math.inf
    )


def _role_of(fault: Mapping[str, Any]) -> str:
    """The role of the process that a line of faults.jsonl is about; a decoder's names the worker it belongs to."""
    if fault["kind"] in NEVER_INJECTED:
        return ""
    return "decoder" if fault["kind"].startswith("decoder_") else fault["worker"].partition("/")[0]
