"""The rollout worker group: a fixed number of slots, each filled by a worker that lives.

A worker that dies, stalls, or whose engine fails is replaced. Its replacement gets no groups before its checksums
confirm the current weights. The groups that a lost worker had in flight are continued by other workers
(actors.rollout_pool).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from actors.heartbeats import Heartbeats
from actors.rollout import WorkerHealth, summed
from actors.rollout_runner import RolloutRunner
from actors.weight_buckets import WeightBucket, WeightsLostError
from actors.worker.completion_queue import Result
from actors.worker.process import ProcessLocation, on_next_line
from actors.worker.stall_detector import dump_stacks
from actors.worker.waiting import COLLECT_S, POLL_S, WorkerError, as_completed, cause_of, do_nothing
from actors.worker_slot import LostWorker, WorkerHandle, WorkerLimits, WorkerSlot, launch
from rl.tracking.log_file import FILE_ONLY
from rl.trajectory import Fault, WorkSpan
from rl.weight_transfer.description import WeightTensor

log, in_file = logging.getLogger(__name__), logging.getLogger(FILE_ONLY)

PushCalls = dict[ray.ObjectRef, tuple[WorkerSlot, WorkerHandle]]  # calls for a push, and who was asked

POLL_GAP_S = 2 * POLL_S  # between two polls; beyond it the driver itself was blocked
MAX_LOSSES = 4  # workers lost in a row in one slot, or over one group: beyond it the fault is elsewhere


class RolloutError(WorkerError):
    """A task cannot be rolled out, or no worker is left for it."""


class RolloutWorkerGroup:
    """Driver's end of the rollout workers: starts, checks, replaces and synchronises them."""

    def __init__(
        self,
        make_rollout_runner: Callable[[], RolloutRunner],
        num_workers: int,
        options: Callable[[int], Mapping[str, Any]],
        *,
        stall_timeout_s: float = 180.0,
        start_timeout_s: float = 600.0,
        memory_growth_mib: float = 0.0,
        device_memory_growth_mib: float = 0.0,
    ) -> None:
        """
        Args:
            options: of a slot's actor, by its index.
            stall_timeout_s: a worker without progress for so long while it has work is replaced.
            memory_growth_mib: a worker that has grown by more is replaced between two steps; 0: never.
            device_memory_growth_mib: the same of its engine's memory on an accelerator.
        """
        self._make_rollout_runner, self._options = make_rollout_runner, options
        self._limits = WorkerLimits(stall_timeout_s, start_timeout_s, memory_growth_mib, device_memory_growth_mib)
        self._version: int | None = None  # of the weights pushed last; None: no push yet
        self._faults: list[Fault] = []
        self._spans: list[WorkSpan] = []
        self._sync: Callable[[], None] = do_nothing
        self._lost: list[LostWorker] = []  # not taken yet
        self._last_poll_s = time.monotonic()
        self.changes = 0  # grows whenever a worker may have become ready, or no longer be
        self._synced_changes = -1  # at which all workers held the current weights
        self.heartbeats = Heartbeats(num_workers, stall_timeout_s)
        self.slots = [WorkerSlot(f"rollout/{index}", index, self._launch(index)) for index in range(num_workers)]
        for slot in self.slots:
            self.heartbeats.await_start(slot)

    def wait_ready(self, timeout_s: float, check: Callable[[], None] = do_nothing) -> None:
        """Return when every engine has loaded its policy.

        Raises:
            RolloutError: one did not, with the reason.
        """
        deadline = time.monotonic() + timeout_s
        while starting := [slot for slot in self.slots if slot.worker.location is None]:
            ready, _ = ray.wait([slot.worker.started for slot in starting], timeout=POLL_S)
            for slot in starting:
                if slot.worker.started in ready:
                    slot.worker.location = _location(slot.worker)
                    self.changes += 1
            check()
            if not ready and time.monotonic() > deadline:
                raise RolloutError(f"could not start: {starting[0].name} gave no answer within {timeout_s:.0f} s")

    @property
    def ready(self) -> list[WorkerSlot]:
        """Slots whose worker has started and holds the current weights (before the first push: those on disk)."""
        return [slot for slot in self.slots if self.is_ready(slot)]

    @property
    def has_ready(self) -> bool:
        """Whether there is one."""
        return any(map(self.is_ready, self.slots))

    @property
    def are_starting(self) -> bool:
        """Whether a worker has not started yet."""
        return any(slot.worker.location is None for slot in self.slots)

    def is_ready(self, slot: WorkerSlot) -> bool:
        """Whether the slot's worker can be given groups."""
        return slot.worker.location is not None and slot.worker.version == self._version

    @property
    def version(self) -> int | None:
        """Version of the weights pushed last; None: no push yet."""
        return self._version

    @property
    def new_workers(self) -> list[str]:
        """Names of the workers that have started and do not hold the current weights."""
        return [slot.name for slot in self.slots if slot.worker.location and slot.worker.version != self._version]

    def set_weight_sync(self, sync: Callable[[], None]) -> None:
        """Set the function that pushes the current weights to new workers."""
        self._sync = sync

    def sync_new_workers(self) -> None:
        """Push the current weights to workers that have started since the last push."""
        if self._synced_changes == self.changes:
            return
        if self.new_workers:
            self._sync()
        if not self.new_workers:
            self._synced_changes = self.changes

    def load_weights(
        self, buckets: Sequence[WeightBucket], version: int, *, timeout_s: float, only: Sequence[str] | None = None
    ) -> dict[str, list[str]]:
        """Load the weights of a version into the engines; a worker that fails at it is replaced.

        Args:
            only: names of workers; None: all that have started.
        Returns:
            Parameters of which an engine holds other values than the learners, by the name of each worker that loaded.
        Raises:
            WeightsLostError: the weights were lost with the learner that held them. No engine samples before another
                push.
        """
        self._version = version
        asked = [slot for slot in self.slots if slot.worker.location and (only is None or slot.name in only)]
        self.changes += 1
        for slot in asked:
            slot.worker.version = None
        sent = ray.put(list(buckets))  # their description is the same for all
        calls = {slot.worker.actor.load_weights.remote(sent, version): (slot, slot.worker) for slot in asked}
        differing, failed = self._collect_push(calls, version, timeout_s)
        lost = [error.cause for _, error in failed if isinstance(error.cause, WeightsLostError)]
        for slot, error in failed:
            if not isinstance(error.cause, WeightsLostError):
                self.replace_worker(slot, "push_interrupted", cause_of(error), error)
        if lost:
            raise lost[0]
        return differing

    def receive_weights(
        self, buckets: Sequence[tuple[WeightTensor, ...]], version: int, slots: Sequence[WorkerSlot]
    ) -> PushCalls:
        """Begin to receive the weights of a version over links; the calls go to `collect_push`."""
        self._version = version
        self.changes += 1
        for slot in slots:
            slot.worker.version = None
        sent = ray.put(list(buckets))
        return {slot.worker.actor.receive_weights.remote(sent, version): (slot, slot.worker) for slot in slots}

    def collect_push(
        self, calls: PushCalls, version: int | None, *, timeout_s: float
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Results of calls for a push by worker, and why others failed; one that died is replaced, the others live on.

        Args:
            version: what a worker that has answered holds from now on; None: what it held before.
        """
        results, failed = self._collect_push(calls, version, timeout_s)
        return results, {slot.name: cause_of(error) for slot, error in failed}

    def _collect_push(
        self, calls: PushCalls, version: int | None, timeout_s: float
    ) -> tuple[dict[str, Any], list[tuple[WorkerSlot, RayTaskError]]]:
        results: dict[str, Any] = {}
        failed: list[tuple[WorkerSlot, RayTaskError]] = []
        for (slot, worker), result in as_completed(calls, timeout_s):
            if slot.worker is not worker:  # a heartbeat has told already
                continue
            try:
                results[slot.name] = result()
            except RayTaskError as error:
                failed.append((slot, error))
            except (RayError, TimeoutError) as error:
                self.replace_worker(slot, "push_interrupted", cause_of(error), error)
            else:
                slot.worker.version = slot.worker.version if version is None else version
                self.changes += 1
        return results, failed

    def forget_weights(self) -> None:
        """No engine holds any: to the next push all of them are new."""
        for slot in self.slots:
            slot.worker.version = None
        self.changes += 1

    def kernels(self, *, timeout_s: float) -> dict[str, dict[str, str]]:
        """What the bits of each worker's results depend on, by the worker's name; a worker that fails is left out."""
        calls, found = {slot.worker.actor.kernels.remote(): slot for slot in self.ready}, {}
        for slot, result in as_completed(calls, timeout_s):
            try:
                found[slot.name] = result()
            except (RayError, TimeoutError) as error:
                self.replace_worker(slot, "worker_died", cause_of(error))
        return found

    def mark_recovered(self, names: Sequence[str]) -> None:
        """Close the faults of workers whose checksums have been verified: they have taken over."""
        for slot in self.slots:
            if slot.name in names:
                self._mark_recovered(slot)

    def stats(self) -> dict[str, float]:
        """Engine counters summed over workers, memory of the largest; a worker that has grown too much is replaced."""
        calls = {slot.worker.actor.health.remote(): slot for slot in self.slots if slot.worker.location}
        reports: list[WorkerHealth] = []
        slopes_mib: list[float] = []
        for slot, result in as_completed(calls, COLLECT_S):
            try:
                health = result()
            except (RayError, TimeoutError) as error:
                self.replace_worker(slot, "worker_died", cause_of(error), error)
                continue
            reports.append(health)
            self._faults += [replace(fault, worker=f"{slot.name}/{fault.worker}") for fault in health.faults]
            self._spans += [WorkSpan(slot.name, "rollout", *interval) for interval in health.worked]
            self._spans += [WorkSpan(f"asleep/{slot.index}", *turn) for turn in health.asleep]
            slot.worker.memory.update(health.memory_mib)
            slot.worker.device_memory.update(health.device_memory_mib)
            slopes_mib.append(slot.worker.memory.slope_mib)
            self._recycle_if_grown(slot)
        return summed(reports) | {"memory/rollout_slope": max(slopes_mib, default=0.0)}

    def poll(self) -> None:
        """Check every worker without blocking: has it started, died or stalled?

        Raises:
            RolloutError: a slot has lost too many workers in a row.
        """
        for slot, result, is_heartbeat in self.heartbeats.arrived():
            if is_heartbeat:
                self._take_heartbeat(slot, result)
            elif slot.worker.location is None:
                self._check_started(slot)
        since_s = time.monotonic() - self._last_poll_s
        if since_s < POLL_S:
            return
        blocked_s = since_s - POLL_GAP_S
        for slot in self.slots:
            worker = slot.worker
            if worker.location is None:
                self._check_started(slot)
                continue
            if blocked_s > 0:  # no heartbeat was requested in that time
                worker.stall_detector.extend(blocked_s)
            self.heartbeats.request(slot)
            if not worker.calls:
                worker.stall_detector.reset()
            elif worker.stall_detector.is_stalled:
                timeout_s = self._limits.stall_timeout_s
                in_file.error("%s: no progress for %g s:\n%s", slot.name, timeout_s, dump_stacks(worker.location))
                cause = f"no progress for {timeout_s:g} s; its stacks are in the run's logs/"
                self.replace_worker(slot, "worker_hung", cause)
        self._last_poll_s = time.monotonic()

    def take_lost(self) -> list[LostWorker]:
        """Workers that were replaced since the last call of this method."""
        lost, self._lost = self._lost, []
        return lost

    def replace_worker(self, slot: WorkerSlot, kind: str, cause: str, error: Exception | None = None) -> None:
        """Kill the worker of a slot and start another.

        Args:
            error: what its call raised, if one did.
        Raises:
            RolloutError: too many in a row.
        """
        lost = slot.worker
        ray.kill(lost.actor, no_restart=True)
        failure = None if kind == "recycled" else lost.process.failure(error)
        log.warning("%s is replaced (%s): %s%s", slot.name, kind.replace("_", " "), cause, on_next_line(failure))
        slot.consecutive_losses += kind != "recycled"
        if slot.consecutive_losses >= MAX_LOSSES:
            message = f"{slot.name}: {slot.consecutive_losses} workers in a row were lost; the last: {cause}"
            raise RolloutError(message, failure)
        if slot.open_fault is not None:  # the lost worker was a replacement that never took over
            self._close_fault(slot)
        continued = f"; {lost.in_flight} groups went on from their token histories" if lost.in_flight else ""
        slot.open_fault = Fault(kind, slot.name, cause, f"replaced{continued}", time.time(), 0.0, failure)
        slot.replaced += 1
        slot.worker = self._launch(slot.index, slot.replaced)
        self.heartbeats.await_start(slot)
        self._lost.append(LostWorker(lost, cause))
        self.changes += 1

    def record(self, fault: Fault) -> None:
        """Add a fault from which the pool has recovered."""
        self._faults.append(fault)

    def take_faults(self, *, unfinished: bool = False) -> list[Fault]:
        """Faults recovered from since the last call of this method.

        Args:
            unfinished: also those whose replacement has not taken over yet; for the end of a run.
        """
        if unfinished:
            for slot in [slot for slot in self.slots if slot.open_fault]:
                self._close_fault(slot, "; not back when the run ended")
        faults, self._faults = self._faults, []
        return faults

    def take_spans(self) -> list[WorkSpan]:
        """When which engine worked, as the last `stats` have told, since the last call of this method."""
        spans, self._spans = self._spans, []
        return spans

    def _launch(self, index: int, replaced: int = 0) -> WorkerHandle:
        return launch(self._make_rollout_runner, self._options(index), self._limits, replaced)

    def _recycle_if_grown(self, slot: WorkerSlot) -> None:
        worker = slot.worker
        for guard, key in ((worker.memory, "memory_growth_mib"), (worker.device_memory, "device_memory_growth_mib")):
            if guard.is_exceeded:
                self.replace_worker(slot, "recycled", f"grew by {guard.growth_mib:.0f} MiB (rollout.{key})")
                return

    def _take_heartbeat(self, slot: WorkerSlot, result: Result) -> None:
        try:
            heartbeat = self.heartbeats.read(slot, result)
        except RayError as error:
            self.replace_worker(slot, "worker_died", cause_of(error), error)
            return
        if heartbeat.failure:
            self.replace_worker(slot, "engine_died", heartbeat.failure)

    def _check_started(self, slot: WorkerSlot) -> None:
        worker = slot.worker
        if ray.wait([worker.started], timeout=0)[0]:
            try:
                worker.location = worker.process.location or ray.get(worker.started, timeout=COLLECT_S)
                self.changes += 1
            except RayError as error:
                self.replace_worker(slot, "worker_died", f"while starting: {cause_of(error)}", error)
            else:
                if self._version is None:
                    self._mark_recovered(slot)
        elif time.monotonic() - worker.launched_s > self._limits.start_timeout_s:
            self.replace_worker(slot, "worker_hung", f"did not start within {self._limits.start_timeout_s:.0f} s")

    def _mark_recovered(self, slot: WorkerSlot) -> None:
        if slot.open_fault is not None:
            log.warning("%s is back after %.1f s", slot.name, self._close_fault(slot))

    def _close_fault(self, slot: WorkerSlot, outcome: str = "") -> float:
        """Record the slot's fault as recovered; returns the seconds it took."""
        fault, slot.open_fault = slot.open_fault, None
        seconds = time.time() - fault.detected_s
        self._faults.append(replace(fault, action=f"{fault.action}{outcome}", recovery_s=seconds))
        return seconds


def _location(worker: WorkerHandle) -> ProcessLocation:
    try:
        return worker.process.location or ray.get(worker.started, timeout=COLLECT_S)
    except RayError as error:
        failure = worker.process.failure(error)
        log.error("%s", failure)
        raise RolloutError(f"could not start: a worker died: {cause_of(error)}", failure) from error
