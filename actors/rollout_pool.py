"""Rollout requests of a step: sent to workers, collected, and continued by other workers when one is lost.

The driver keeps the token history of every group in flight, turn by turn, from the heartbeats. When a worker is lost,
its groups are continued elsewhere from there, with the seeds they would have had. Only results of calls still in flight
are used, so a worker that lives on after it was replaced changes nothing.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import ray
from ray.exceptions import RayError, RayTaskError

from actors.frames import blocks_of, exchange
from actors.rollout import EngineGoneError
from actors.rollout_group import MAX_LOSSES, OnTurn, RolloutError, RolloutWorkerGroup, ignore_turn
from actors.worker.label import label
from actors.worker.waiting import COLLECT_S, POLL_S, WORKER_IS_GONE, cause_of, do_nothing
from actors.worker_slot import WorkerHandle, WorkerSlot
from envs.rollout import occurrences
from rl.trajectory import Completion, Fault, TrajectoryGroup, VideoTask

MAX_FAILURES = 2  # of a group, in workers that live
DECODE_ATTEMPTS = 3  # to get lost frames from their video again


class StaleWeightsError(RuntimeError):
    """A group was sampled with other weights than those pushed last."""


@dataclass(slots=True)
class RolloutRequest:
    """A group to roll out, and the completions of its siblings so far."""

    index: int  # of its task
    task: VideoTask
    occurrence: int
    completions: dict[int, list[Completion | None]] = field(default_factory=dict)  # as in a TokenHistory
    losses: int = 0  # workers lost while they had it
    failures: int = 0


@dataclass(frozen=True, slots=True)
class InFlight:
    """A request that was sent to a worker."""

    call: int
    request: RolloutRequest
    slot: WorkerSlot
    worker: WorkerHandle

    @property
    def is_lost(self) -> bool:
        """Its worker has been replaced."""
        return self.slot.worker is not self.worker


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How requests are rolled out."""

    step: int
    greedily: bool
    max_in_flight: int  # groups at a time, per worker
    one_deadline: bool  # True: the timeout bounds all groups together; False: the time in which none finishes


class RolloutPool:
    """Rolls out tasks on the workers there are. Every task is returned once, whichever workers are lost."""

    def __init__(
        self, workers: RolloutWorkerGroup, *, timeout_s: float, check: Callable[[], None] = do_nothing
    ) -> None:
        """
        Args:
            timeout_s: of a whole `generate`; in `roll_out`, of the time in which no group finishes.
            check: called about once a second while waiting; what it raises ends the wait.
        """
        self.workers = workers
        self._timeout_s, self._check = timeout_s, check
        self._calls = itertools.count()

    def generate(
        self, tasks: Sequence[VideoTask], *, step: int, attempt: int = 0, greedily: bool = False
    ) -> list[TrajectoryGroup]:
        """A group per task, in order: sampled siblings, or one greedy trajectory.

        Args:
            attempt: 1, 2, ... for the replacements of zero-variance groups: with step and task it determines the seeds.
        Raises:
            RolloutError: a task cannot be rolled out, or not all were within the deadline.
        """
        return self._generate(_requests(tasks, attempt), step, greedily)

    def roll_out(
        self, tasks: Sequence[VideoTask], *, step: int, greedily: bool, in_flight: int
    ) -> Iterator[list[tuple[int, TrajectoryGroup]]]:
        """Groups as they finish, each with its task's index: all that are ready, at least one at a time.

        A worker gets its next task when it has finished one, so none is idle while another has a queue.

        Args:
            in_flight: tasks at a time, per worker.
        Raises:
            RolloutError: a task cannot be rolled out, or nothing finished within the deadline. What else had finished
                by then is yielded first.
        """
        yield from self._roll_out(_requests(tasks), GenerationOptions(step, greedily, in_flight, one_deadline=False))

    def restore(self, groups: Sequence[TrajectoryGroup]) -> list[TrajectoryGroup]:
        """The same groups with their pixels decoded again: those in the object store were lost with their worker.

        Everything else stays as it was sampled: a video that could not be read then, and can be now, changes nothing.

        Raises:
            RolloutError: a video does not give the same frames, in DECODE_ATTEMPTS attempts.
        """
        detected_s = time.time()
        wanted, found = [set(blocks_of([group])) for group in groups], [{} for _ in groups]
        for _ in range(DECODE_ATTEMPTS):
            missing = [index for index, digests in enumerate(wanted) if digests - found[index].keys()]
            for index, new in zip(missing, self._replayed([groups[index] for index in missing]), strict=True):
                found[index] |= blocks_of([new])
        for group, digests, blocks in zip(groups, wanted, found, strict=True):
            if digests - blocks.keys():
                raise RolloutError(
                    f"{group.task.video_path}: the frames of task {group.task.task_id} were lost with their worker, "
                    f"and in {DECODE_ATTEMPTS} attempts the video did not give the same again"
                )
        seconds = time.time() - detected_s
        self.workers.record(
            Fault("frames_lost", "rollout", f"pixels of {len(groups)} groups", "decoded anew", detected_s, seconds)
        )
        return [exchange(group, blocks) for group, blocks in zip(groups, found, strict=True)]

    def _replayed(self, groups: Sequence[TrajectoryGroup]) -> list[TrajectoryGroup]:
        """The groups rolled out again from their recorded completions; nothing is sampled."""
        requests = _requests([group.task for group in groups])
        for request, group in zip(requests, groups, strict=True):
            recorded = [[turn.completion for turn in trajectory.turns] for trajectory in group.trajectories_G]
            request.completions = {sibling: [*turns, None] for sibling, turns in enumerate(recorded)}
        return self._generate(requests, step=0, greedily=False)

    def _generate(self, requests: Sequence[RolloutRequest], step: int, greedily: bool) -> list[TrajectoryGroup]:
        groups: dict[int, TrajectoryGroup] = {}
        options = GenerationOptions(step, greedily, max_in_flight=len(requests), one_deadline=True)
        for finished in self._roll_out(requests, options):
            groups |= dict(finished)
        return [groups[index] for index in range(len(requests))]

    def _roll_out(
        self, requests: Sequence[RolloutRequest], options: GenerationOptions
    ) -> Iterator[list[tuple[int, TrajectoryGroup]]]:
        waiting, in_flight = deque(requests), {}
        left_s = self._timeout_s
        self.workers.set_on_turn(_record_turns(in_flight))
        try:
            while waiting or in_flight:
                self._check()
                self.workers.sync_new_workers()
                self._dispatch(waiting, in_flight, options)
                began = time.monotonic()
                finished, failure = self._collect(waiting, in_flight)
                waited_s = time.monotonic() - began
                if finished:
                    yield finished
                if failure is not None:
                    raise failure
                self._poll_workers(waiting, in_flight)
                left_s = self._timeout_s if finished and not options.one_deadline else left_s
                left_s -= waited_s if self.workers.ready else 0.0  # a start has a deadline of its own
                if left_s < 0:
                    raise self._timed_out(len(waiting) + len(in_flight), options)
        finally:
            self.workers.set_on_turn(ignore_turn)
            for reference, sent in in_flight.items():
                sent.worker.in_flight -= 1
                ray.cancel(reference)

    def _dispatch(
        self, waiting: deque[RolloutRequest], in_flight: dict[ray.ObjectRef, InFlight], options: GenerationOptions
    ) -> None:
        """Send waiting requests, each to the worker with the fewest groups."""
        while waiting and (
            free := [slot for slot in self.workers.ready if slot.worker.in_flight < options.max_in_flight]
        ):
            slot, request, call = min(free, key=_load), waiting.popleft(), next(self._calls)
            worker = slot.worker
            if not worker.in_flight:
                worker.stall_detector.reset()
            worker.in_flight += 1
            completions = {sibling: tuple(turns) for sibling, turns in request.completions.items()}
            shown = {"name": label(worker.process.name, options.step)}
            sent = worker.actor.generate.options(**shown).remote(
                call, request.task, options.step, request.occurrence, options.greedily, completions
            )
            in_flight[sent] = InFlight(call, request, slot, worker)

    def _collect(
        self, waiting: deque[RolloutRequest], in_flight: dict[ray.ObjectRef, InFlight]
    ) -> tuple[list[tuple[int, TrajectoryGroup]], RolloutError | None]:
        """Groups that have finished; failed requests wait again, or are an error if they have failed too often."""
        starting = [slot.worker.started for slot in self.workers.slots if slot.worker.location is None]
        if not in_flight and not starting:
            raise RolloutError("no worker holds the current weights")
        if not ray.wait([*in_flight, *starting], timeout=POLL_S)[0] or not in_flight:
            return [], None
        finished, failure = [], None
        for reference in ray.wait(list(in_flight), num_returns=len(in_flight), timeout=0)[0]:
            sent = in_flight.pop(reference)
            sent.worker.in_flight -= 1
            try:
                finished.append((sent.request.index, self._accepted(ray.get(reference, timeout=COLLECT_S), sent)))
            except StaleWeightsError as error:
                sent.request.completions.clear()
                failure = failure or _retry(waiting, sent.request, cause_of(error), is_loss=False)
            except RayError as error:
                loss = _loss_kind(error)
                if loss and not sent.is_lost:
                    sent.worker.in_flight += 1  # as it was when it died, for the record
                    self.workers.replace_worker(sent.slot, loss, cause_of(error), error)
                failure = failure or _retry(waiting, sent.request, cause_of(error), is_loss=bool(loss))
        return finished, failure

    def _accepted(self, group: TrajectoryGroup, sent: InFlight) -> TrajectoryGroup:
        """The group, if it was sampled with the weights pushed last."""
        pushed = self.workers.version
        versions = {turn.completion.policy_version for t in group.trajectories_G for turn in t.turns}
        if pushed is not None and versions - {pushed}:
            raise StaleWeightsError(f"{sent.slot.name} sampled with weights {sorted(versions)}, not {pushed}")
        sent.slot.consecutive_losses = 0
        return group

    def _poll_workers(self, waiting: deque[RolloutRequest], in_flight: dict[ray.ObjectRef, InFlight]) -> None:
        """Check every worker; the requests of lost ones wait again, with their siblings' completions."""
        self.workers.poll()
        for reference in [reference for reference, sent in in_flight.items() if sent.is_lost]:
            sent = in_flight.pop(reference)
            cause = sent.slot.open_fault.cause if sent.slot.open_fault else "its worker was lost"
            if failure := _retry(waiting, sent.request, cause, is_loss=True):
                raise failure

    def _timed_out(self, left: int, options: GenerationOptions) -> RolloutError:
        what = (
            f"could not roll out {left} tasks: no answer" if options.one_deadline else f"none of {left} tasks finished"
        )
        return RolloutError(f"{what} within {self._timeout_s:g} s (rollout.call_timeout_s)")


def _requests(tasks: Sequence[VideoTask], attempt: int = 0) -> list[RolloutRequest]:
    numbers = occurrences([task.task_id for task in tasks], attempt)
    return [
        RolloutRequest(index, task, number) for index, (task, number) in enumerate(zip(tasks, numbers, strict=True))
    ]


def _record_turns(in_flight: Mapping[ray.ObjectRef, InFlight]) -> OnTurn:
    """A callback that adds turns to their requests, in order: a turn without those before it is dropped."""

    def on_turn(call: int, sibling: int, turn: int, completion: Completion) -> None:
        for request in [sent.request for sent in in_flight.values() if sent.call == call]:
            completions = request.completions.setdefault(sibling, [])
            if turn == len(completions):
                completions.append(completion)

    return on_turn


def _load(slot: WorkerSlot) -> tuple[int, int]:
    return slot.worker.in_flight, -slot.consecutive_losses  # of equals: a replacement shows early whether it works


def _loss_kind(error: RayError) -> str:
    """The kind of fault if a call failed because its worker was lost; else empty."""
    if isinstance(error, WORKER_IS_GONE):
        return "worker_died"
    return "engine_died" if isinstance(error, RayTaskError) and isinstance(error.cause, EngineGoneError) else ""


def _retry(
    waiting: deque[RolloutRequest], request: RolloutRequest, cause: str, *, is_loss: bool
) -> RolloutError | None:
    """Put the request first in line again; an error if it has failed too often."""
    name = request.task.task_id
    request.losses, request.failures = request.losses + is_loss, request.failures + (not is_loss)
    waiting.appendleft(request)
    if request.losses >= MAX_LOSSES:
        return RolloutError(f"could not roll out task {name}: {MAX_LOSSES} workers were lost over it: {cause}")
    return RolloutError(f"could not roll out task {name}: {cause}") if request.failures >= MAX_FAILURES else None
