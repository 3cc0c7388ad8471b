"""The rollout pool: requests sent to workers, collected, and continued by other workers when one is lost.

The driver keeps the token history of every group in flight, turn by turn, from the heartbeats. When a worker is lost,
its groups are continued elsewhere from there, with the seeds they would have had. Only results of calls still in flight
are used, so a worker that lives on after it was replaced changes nothing.

Several batches may be under way. `advance` moves all of them on and need not wait, so that groups are handed out and
collected while the caller waits for something else, such as the learners.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import ray
from ray.exceptions import RayError, RayTaskError

from actors.frames import blocks_of, exchange
from actors.rollout import EngineGoneError
from actors.rollout_group import MAX_LOSSES, OnTurn, RolloutError, RolloutWorkerGroup
from actors.rollout_requests import GenerationOptions, RolloutBatch, RolloutRequest, WaitingRequests
from actors.worker.label import label
from actors.worker.waiting import COLLECT_S, POLL_S, WORKER_IS_GONE, cause_of, do_nothing
from actors.worker_slot import WorkerHandle, WorkerSlot
from envs.rollout import occurrences
from rl.trajectory import Completion, Fault, TrajectoryGroup, VideoTask

MAX_FAILURES = 2  # of a group, in workers that live
DECODE_ATTEMPTS = 3  # to get lost frames from their video again


class StaleWeightsError(RuntimeError):
    """A group was sampled with older weights than its batch allows."""


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


class RolloutPool:
    """Rolls out tasks on the workers there are. Every task is returned once, whichever workers are lost."""

    def __init__(
        self,
        workers: RolloutWorkerGroup,
        *,
        timeout_s: float,
        check: Callable[[], None] = do_nothing,
        max_num_seqs: int = 32,
        group_size: int = 8,
    ) -> None:
        """
        Args:
            timeout_s: of a whole batch; in `roll_out`, of the time in which no group finishes.
            check: called about once a second while waiting; what it raises ends the wait.
            max_num_seqs: trajectories that an engine decodes at once; with `group_size` it says how many groups keep an
                engine busy.
        """
        self.workers = workers
        self._timeout_s, self.check = timeout_s, check
        self._max_num_seqs, self._group_size = max_num_seqs, group_size
        self._calls, self._serials = itertools.count(), itertools.count()
        self._waiting = WaitingRequests()
        self._in_flight: dict[ray.ObjectRef, InFlight] = {}
        self._is_advancing = False
        workers.set_on_turn(_record_turns(self._in_flight))

    def generate(
        self, tasks: Sequence[VideoTask], *, step: int, attempt: int = 0, greedily: bool = False
    ) -> list[TrajectoryGroup]:
        """A group per task, in order: sampled siblings, or one greedy trajectory.

        Args:
            attempt: 1, 2, ... for the replacements of zero-variance groups: with step and task it determines the seeds.
        Raises:
            RolloutError: a task cannot be rolled out, or not all were within the deadline.
        """
        groups = dict(itertools.chain(*self._collected(self._begun(tasks, attempt, self._options(step, greedily)))))
        return [groups[index] for index in range(len(tasks))]

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
        options = GenerationOptions(step, greedily, in_flight, one_deadline=False)
        yield from self._collected(self._begun(tasks, 0, options))

    def start(self, tasks: Sequence[VideoTask], *, step: int, attempt: int = 0, max_lag: int = 0) -> RolloutBatch:
        """Begin to roll out tasks, in the background: `advance` moves them on, `RolloutBatch.take` gives the groups.

        Args:
            attempt: as in `generate`.
            max_lag: pushes by which the weights that sampled a group may be behind when it has finished.
        """
        return self._begun(tasks, attempt, self._options(step, greedily=False, max_lag=max_lag, is_urgent=False))

    def advance(self, timeout_s: float = 0.0, *, waited_s: float = 0.0) -> None:
        """Hand out requests, collect groups, replace workers; waits at most `timeout_s` for a group.

        Args:
            waited_s: for which the caller has waited for `references`; it counts towards deadlines.
        Raises:
            RolloutError: a task cannot be rolled out, or a batch was not within its deadline.
        """
        if self._is_advancing:  # called by what waits for the learners, who give a new worker its weights
            return self.workers.poll()
        self._is_advancing = True
        try:
            if self._waiting or self._in_flight:
                self.workers.sync_new_workers()
                self._dispatch()
                self._collect(timeout_s, waited_s)
            self._poll_workers()
        finally:
            self._is_advancing = False

    def cancel(self, batch: RolloutBatch) -> None:
        """Give a batch up."""
        self._waiting.drop(batch)
        for reference in [reference for reference, sent in self._in_flight.items() if sent.request.batch is batch]:
            self._in_flight.pop(reference).worker.in_flight -= 1
            ray.cancel(reference)

    @property
    def references(self) -> list[ray.ObjectRef]:
        """What `advance` would wait for: requests in flight, and workers that are starting."""
        starting = [slot.worker.started for slot in self.workers.slots if slot.worker.location is None]
        return [*self._in_flight, *starting]

    @property
    def needs_push(self) -> bool:
        """Every worker is new and could not be given the current weights: the learners have moved on."""
        return not self.workers.ready and len(self.workers.new_workers) == len(self.workers.slots)

    def restore(self, groups: Sequence[TrajectoryGroup]) -> list[TrajectoryGroup]:
        """The same groups with their pixels decoded again: those in the object store were lost with their worker.

        Everything else stays as it was sampled: a video that could not be read then, and can be now, changes nothing.

        Raises:
            RolloutError: a video does not give the same frames, in DECODE_ATTEMPTS attempts.
        """
        detected_s = time.time()
        restored = self.decode_again(groups)
        seconds = time.time() - detected_s
        self.workers.record(
            Fault("frames_lost", "rollout", f"pixels of {len(groups)} groups", "decoded anew", detected_s, seconds)
        )
        return restored

    def decode_again(self, groups: Sequence[TrajectoryGroup]) -> list[TrajectoryGroup]:
        """As `restore`, for groups that have no pixels because they were read from a disk: that is no fault."""
        wanted, found = [set(blocks_of([group])) for group in groups], [{} for _ in groups]
        for _ in range(DECODE_ATTEMPTS):
            missing = [index for index, digests in enumerate(wanted) if digests - found[index].keys()]
            for index, new in zip(missing, self._replayed([groups[index] for index in missing]), strict=True):
                found[index] |= blocks_of([new])
        for group, digests, blocks in zip(groups, wanted, found, strict=True):
            if digests - blocks.keys():
                raise RolloutError(
                    f"{group.task.video_path}: the frames of task {group.task.task_id} are needed once more, and in "
                    f"{DECODE_ATTEMPTS} attempts the video did not give the same again"
                )
        return [exchange(group, blocks) for group, blocks in zip(groups, found, strict=True)]

    def _replayed(self, groups: Sequence[TrajectoryGroup]) -> list[TrajectoryGroup]:
        """The groups rolled out again from their recorded completions; nothing is sampled."""
        batch = self._begun([group.task for group in groups], 0, self._options(step=0, greedily=False), groups)
        replayed = dict(itertools.chain(*self._collected(batch)))
        return [replayed[index] for index in range(len(groups))]

    def _options(self, step: int, greedily: bool, max_lag: int = 0, is_urgent: bool = True) -> GenerationOptions:
        """One group more at a time than fills an engine: some siblings always wait for frames."""
        siblings = 1 if greedily else self._group_size
        busy = -(-self._max_num_seqs // siblings) + 1
        return GenerationOptions(step, greedily, busy, max_lag=max_lag, is_urgent=is_urgent)

    def _begun(
        self,
        tasks: Sequence[VideoTask],
        attempt: int,
        options: GenerationOptions,
        recorded: Sequence[TrajectoryGroup] | None = None,
    ) -> RolloutBatch:
        """A batch whose requests are in line; `recorded` groups are not sampled again."""
        batch = RolloutBatch(next(self._serials), options, len(tasks), self._timeout_s)
        numbers = occurrences([task.task_id for task in tasks], attempt)
        for index, (task, number) in enumerate(zip(tasks, numbers, strict=True)):
            request = RolloutRequest(batch, index, task, number)
            if recorded is not None:
                request.completions, request.is_recorded = _completions(recorded[index]), True
            self._waiting.add(request)
        return batch

    def _collected(self, batch: RolloutBatch) -> Iterator[list[tuple[int, TrajectoryGroup]]]:
        """The groups of a batch as they finish; whatever ends the wait ends the batch."""
        try:
            while batch.unfinished or batch.finished:
                self.check()
                try:
                    self.advance(POLL_S)
                finally:
                    if finished := batch.take():
                        yield finished
        finally:
            self.cancel(batch)

    def _dispatch(self) -> None:
        """Send waiting requests, each to the worker with the fewest groups, none to one that has enough."""
        while self._waiting:
            options = self._waiting.first().batch.options
            free = [slot for slot in self.workers.ready if slot.worker.in_flight < options.max_in_flight]
            if not free:
                return
            slot, request, call = min(free, key=_load), self._waiting.pop(), next(self._calls)
            worker = slot.worker
            if not worker.in_flight:
                worker.stall_detector.reset()
            worker.in_flight += 1
            completions = {sibling: tuple(turns) for sibling, turns in request.completions.items()}
            shown = {"name": label(worker.process.name, options.step)}
            sent = worker.actor.generate.options(**shown).remote(
                call, request.task, options.step, request.occurrence, options.greedily, completions
            )
            self._in_flight[sent] = InFlight(call, request, slot, worker)

    def _collect(self, timeout_s: float, waited_s: float) -> None:
        """Take groups that have finished; failed requests wait again, or are an error if they have failed too often."""
        references = self.references
        if not references and self.needs_push:
            return
        if not references:
            raise RolloutError("no worker holds the current weights")
        began = time.monotonic()
        ray.wait(references, timeout=timeout_s)
        waited_s, failure = waited_s + time.monotonic() - began, None
        underway = {sent.request.batch for sent in self._in_flight.values()}
        done = (
            ray.wait(list(self._in_flight), num_returns=len(self._in_flight), timeout=0)[0] if self._in_flight else ()
        )
        for reference in done:
            sent = self._in_flight.pop(reference)
            ended = self._take(reference, sent)
            failure = failure or ended
        if failure is not None:
            raise failure
        self._require_in_time(underway, waited_s)

    def _take(self, reference: ray.ObjectRef, sent: InFlight) -> RolloutError | None:
        """The result of a call that has returned; the error of a request that has failed too often."""
        request, batch = sent.request, sent.request.batch
        sent.worker.in_flight -= 1
        try:
            group = self._accepted(ray.get(reference, timeout=COLLECT_S), sent)
        except StaleWeightsError as error:
            request.completions.clear()
            return self._retry(request, cause_of(error), is_loss=False)
        except RayError as error:
            loss = _loss_kind(error)
            if loss and not sent.is_lost:
                sent.worker.in_flight += 1  # as it was when it died, for the record
                self.workers.replace_worker(sent.slot, loss, cause_of(error), error)
            return self._retry(request, cause_of(error), is_loss=bool(loss))
        batch.finished.append((request.index, group))
        batch.unfinished -= 1
        if not batch.options.one_deadline:
            batch.left_s = self._timeout_s
        self._waiting.finished(group)
        return None

    def _accepted(self, group: TrajectoryGroup, sent: InFlight) -> TrajectoryGroup:
        """The group, if no token of it was sampled with weights older than its batch allows."""
        pushed, max_lag = self.workers.version, sent.request.batch.options.max_lag
        versions = {turn.completion.policy_version for t in group.trajectories_G for turn in t.turns}
        if (
            pushed is not None
            and not sent.request.is_recorded
            and any(not pushed - max_lag <= version <= pushed for version in versions)
        ):
            behind = f", nor up to {max_lag} pushes before it" if max_lag else ""
            raise StaleWeightsError(f"{sent.slot.name} sampled with weights {sorted(versions)}, not {pushed}{behind}")
        sent.slot.consecutive_losses = 0
        return group

    def _poll_workers(self) -> None:
        """Check every worker; the requests of lost ones wait again, with their siblings' completions."""
        self.workers.poll()
        for reference in [reference for reference, sent in self._in_flight.items() if sent.is_lost]:
            sent = self._in_flight.pop(reference)
            cause = sent.slot.open_fault.cause if sent.slot.open_fault else "its worker was lost"
            if failure := self._retry(sent.request, cause, is_loss=True):
                raise failure

    def _retry(self, request: RolloutRequest, cause: str, *, is_loss: bool) -> RolloutError | None:
        """Put the request first in line again; an error if it has failed too often."""
        name = request.task.task_id
        request.losses, request.failures = request.losses + is_loss, request.failures + (not is_loss)
        self._waiting.add(request)
        if request.losses >= MAX_LOSSES:
            return RolloutError(f"could not roll out task {name}: {MAX_LOSSES} workers were lost over it: {cause}")
        return RolloutError(f"could not roll out task {name}: {cause}") if request.failures >= MAX_FAILURES else None

    def _require_in_time(self, batches: Iterable[RolloutBatch], waited_s: float) -> None:
        """Only time counts in which a worker was there: a start has a deadline of its own."""
        if not self.workers.ready:
            return
        for batch in batches:
            batch.left_s -= waited_s
            if batch.unfinished and batch.left_s < 0:
                left = batch.unfinished
                what = f"none of {left} tasks finished"
                if batch.options.one_deadline:
                    what = f"could not roll out {left} tasks: no answer"
                raise RolloutError(f"{what} within {self._timeout_s:g} s (rollout.call_timeout_s)")


def _completions(group: TrajectoryGroup) -> dict[int, list[Completion | None]]:
    """Of the siblings of a group that has finished, as in a TokenHistory."""
    recorded = [[turn.completion for turn in trajectory.turns] for trajectory in group.trajectories_G]
    return {sibling: [*turns, None] for sibling, turns in enumerate(recorded)}


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
