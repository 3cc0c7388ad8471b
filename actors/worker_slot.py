"""A rollout worker as the driver sees it, and the slot that it fills until another one replaces it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

from actors.cluster.placement import incarnation_name
from actors.rollout import RolloutWorker
from actors.rollout_runner import RolloutRunner
from actors.worker.memory import GrowthGuard
from actors.worker.process import ProcessLocation, WorkerProcess
from actors.worker.stall_detector import StallDetector
from rl.trajectory import Fault

MAX_CALLS = 1024  # of a worker at a time: groups in flight, heartbeats, weights


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What a rollout worker may do before it is replaced."""

    stall_timeout_s: float  # without progress while it has work
    start_timeout_s: float
    memory_growth_mib: float  # since warm-up; 0: no limit
    device_memory_growth_mib: float  # likewise, of its engine on an accelerator


@dataclass(slots=True, eq=False)
class WorkerHandle:
    """One rollout worker."""

    actor: Any
    process: WorkerProcess  # started once the engine has loaded
    stall_detector: StallDetector
    memory: GrowthGuard
    device_memory: GrowthGuard
    launched_s: float = field(default_factory=time.monotonic)
    location: ProcessLocation | None = None  # None: it has not started yet
    version: int | None = None  # of the weights it confirmed; None: those it loaded from disk
    heartbeat: ray.ObjectRef | None = None  # requested, not received
    new_turns: ray.ObjectRef | None = None  # that come with it
    last_heartbeat_s: float = 0.0  # time.monotonic() at the last request
    calls: set[int] = field(default_factory=set)  # in flight: one for each group

    @property
    def in_flight(self) -> int:
        """Groups."""
        return len(self.calls)

    @property
    def started(self) -> ray.ObjectRef:
        """Resolves to its location once the engine has loaded."""
        return self.process.started


@dataclass(slots=True)
class WorkerSlot:
    """One of the fixed number of workers in a group, whichever process fills it."""

    name: str
    index: int
    worker: WorkerHandle
    replaced: int = 0  # workers before this one
    consecutive_losses: int = 0
    open_fault: Fault | None = None  # how the last worker was lost, until this one has taken over


@dataclass(frozen=True, slots=True)
class LostWorker:
    """A worker that was replaced, with the calls it had."""

    worker: WorkerHandle
    cause: str


def launch(
    make_rollout_runner: Callable[[], RolloutRunner], options: Mapping[str, Any], limits: WorkerLimits, replaced: int
) -> WorkerHandle:
    """Start a worker in the background.

    Args:
        options: of the actor; its name is made unique by `replaced`, the number of workers before it in its slot.
    """
    unique = dict(options) | {"name": incarnation_name(options["name"], replaced), "max_concurrency": MAX_CALLS}
    actor = ray.remote(RolloutWorker).options(**unique).remote(make_rollout_runner)
    return WorkerHandle(
        actor,
        WorkerProcess(unique["name"], actor.location.remote()),
        StallDetector(limits.stall_timeout_s),
        GrowthGuard(limits.memory_growth_mib),
        GrowthGuard(limits.device_memory_growth_mib),
    )
