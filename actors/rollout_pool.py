"""The rollout pool: requests sent to workers, collected, and continued by other workers when one is lost.

The driver keeps references to the turns that heartbeats report of every group in flight. When a worker is lost, its
groups are continued elsewhere from there, with the seeds they would have had. Only results of calls still in flight are
used, so a worker that lives on after it was replaced changes nothing.

Several batches may be under way. `advance` moves all of them on and need not wait, so that groups are handed out and
collected while the caller waits for something else, such as the learners.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import ray
from ray.exceptions import RayError, RayTaskError

from actors.frames import FramesLostError
from actors.groups import EarlierCall, GroupLostError, fetch_groups, held_by_driver, load_groups
from actors.least_loaded import LeastLoaded
from actors.rollout import EngineGoneError
from actors.rollout_group import MAX_LOSSES, RolloutError, RolloutWorkerGroup
from actors.rollout_requests import (
    GenerationOptions,
    InFlight,
    RolloutBatch,
    RolloutRequest,
    StaleWeightsError,
    WaitingRequests,
)
from actors.worker.completion_queue import CompletionQueue, Result
from actors.worker.label import label
from actors.worker.waiting import POLL_S, WORKER_IS_GONE, cause_of, do_nothing
from envs.rollout import occurrences
from rl.group_summary import GroupSummary, RemoteGroup, RolloutOrigin
from rl.trajectory import Fault, TrajectoryGroup, VideoTask

MAX_FAILURES = 2  # of a group, in workers that live


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
        self._free = LeastLoaded(workers)
        self._in_flight: dict[int, InFlight] = {}  # by call
        self._under_way: set[RolloutBatch] = set()  # with requests in flight
        self._is_advancing = False
        self._completions, self._woken = CompletionQueue(), threading.Event()  # of requests in flight, by call
        self.wake(self._woken)
        workers.heartbeats.on_turns = self._keep_turns

    def generate(
        self, tasks: Sequence[VideoTask], *, step: int, attempt: int = 0, greedily: bool = False
    ) -> list[RemoteGroup]:
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
    ) -> Iterator[list[tuple[int, RemoteGroup]]]:
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
            if self._waiting or self._in_flight or self.needs_push:
                self.workers.sync_new_workers()
            if self._waiting or self._in_flight:
                self._dispatch()
                self._collect(timeout_s, waited_s)
            self._poll_workers()
        finally:
            self._is_advancing = False

    def cancel(self, batch: RolloutBatch) -> None:
        """Give a batch up."""
        self._waiting.drop(batch)
        for sent in [sent for sent in self._in_flight.values() if sent.request.batch is batch]:
            self._ended(sent)
            ray.cancel(sent.summary)

    def load(self, groups: Sequence[RemoteGroup]) -> list[TrajectoryGroup]:
        """Groups with everything that was sampled, without pixels; one that is lost is rolled out again first.

        For a driver that reads them itself, as an evaluation does: a training step needs summaries only.
        """
        loaded = load_groups(groups)
        lost = [index for index, group in enumerate(loaded) if group is None]
        restored = self.restore([groups[index] for index in lost]) if lost else []
        for index, group in zip(lost, fetch_groups([one.reference for one in restored]), strict=True):
            loaded[index] = group
        return loaded

    @property
    def needs_push(self) -> bool:
        """Every worker is new and could not be given the current weights: the learners have moved on."""
        return not self.workers.has_ready and len(self.workers.new_workers) == len(self.workers.slots)

    def require_weights(self) -> None:
        """Give new workers their weights if all are new; RolloutError: they cannot be had before the next push."""
        if self.needs_push:
            self.workers.sync_new_workers()
        if self.needs_push:
            raise RolloutError("no worker holds the current weights")

    def wake(self, listener: threading.Event) -> None:
        """Set `listener` whenever there is something for `advance` to do."""
        self._completions.wake(listener)
        self.workers.heartbeats.completions.wake(listener)

    def restore(self, groups: Sequence[RemoteGroup], *, heeds_stop: bool = True) -> list[RemoteGroup]:
        """Groups made again that were lost, whole or in part.

        Where only a group's pixels are lost, they are decoded again, and everything else stays as it was sampled: a
        video that could not be read then, and can be now, changes nothing. A group that is lost as well is sampled
        again, with the seeds it had.

        Args:
            heeds_stop: `check` is called meanwhile. False where what it raises would come at the wrong moment.
        Raises:
            RolloutError: a video does not give the same frames.
        """
        detected_s = time.time()
        restored, anew = self._restored(groups, heeds_stop=heeds_stop)
        cause = f"pixels of {len(groups)} groups" + (f", and all else of {anew}" if anew else "")
        action = "decoded anew" + (", sampled again with their seeds" if anew else "")
        self.workers.record(Fault("frames_lost", "rollout", cause, action, detected_s, time.time() - detected_s))
        return restored

    def decode_again(self, groups: Sequence[TrajectoryGroup], *, step: int) -> list[RemoteGroup]:
        """Groups of a step that were read from a disk, with their pixels: as `restore`, but it is no fault."""
        numbers, now = occurrences([group.task.task_id for group in groups], attempt=0), time.monotonic()
        origins = [RolloutOrigin(step, number, False, now, now) for number in numbers]
        return self._restored([held_by_driver(*one) for one in zip(groups, origins, strict=True)])[0]

    def _restored(self, groups: Sequence[RemoteGroup], *, heeds_stop: bool = True) -> tuple[list[RemoteGroup], int]:
        """The groups made again, and how many of them had to be sampled again."""
        batch = RolloutBatch(next(self._serials), self._options(step=0, greedily=False), len(groups), self._timeout_s)
        requests = [
            RolloutRequest(batch, index, group.task, group.origin.occurrence, restored=group)
            for index, group in enumerate(groups)
        ]
        for request in requests:
            self._waiting.add(request)
        restored = dict(itertools.chain(*self._collected(batch, heeds_stop=heeds_stop)))
        anew = sum(request.is_sampled_again for request in requests)
        return [restored[index] for index in range(len(groups))], anew

    def _options(self, step: int, greedily: bool, max_lag: int = 0, is_urgent: bool = True) -> GenerationOptions:
        """One group more at a time than fills an engine: some siblings always wait for frames."""
        siblings = 1 if greedily else self._group_size
        busy = -(-self._max_num_seqs // siblings) + 1
        return GenerationOptions(step, greedily, busy, max_lag=max_lag, is_urgent=is_urgent)

    def _begun(self, tasks: Sequence[VideoTask], attempt: int, options: GenerationOptions) -> RolloutBatch:
        """A batch whose requests are in line."""
        batch = RolloutBatch(next(self._serials), options, len(tasks), self._timeout_s)
        numbers = occurrences([task.task_id for task in tasks], attempt)
        for index, (task, number) in enumerate(zip(tasks, numbers, strict=True)):
            self._waiting.add(RolloutRequest(batch, index, task, number))
        return batch

    def _collected(self, batch: RolloutBatch, *, heeds_stop: bool = True) -> Iterator[list[tuple[int, RemoteGroup]]]:
        """The groups of a batch as they finish; whatever ends the wait ends the batch."""
        try:
            while batch.unfinished or batch.finished:
                if heeds_stop:
                    self.check()
                try:
                    self.advance(POLL_S)
                finally:
                    if finished := batch.take():
                        yield finished
                self.require_weights()  # whoever waits here does not push, and nobody else does meanwhile
        finally:
            self.cancel(batch)

    def _dispatch(self) -> None:
        """Send waiting requests, each to the worker with the fewest groups, none to one that has enough."""
        while self._waiting:
            slot = self._free.first(self._waiting.first().batch.options.max_in_flight)
            if slot is None:
                return
            request, call, worker = self._waiting.pop(), next(self._calls), slot.worker
            if not worker.calls:
                worker.stall_detector.reset()
            worker.calls.add(call)
            request.batch.in_flight += 1
            self._under_way.add(request.batch)
            shown = {"name": label(worker.process.name, request.step), "num_returns": 3}
            if request.restored is not None and not request.is_sampled_again:
                returned = worker.actor.restore.options(**shown).remote(call, [request.restored.reference])
            else:
                returned = worker.actor.generate.options(**shown).remote(
                    call, request.task, request.step, request.occurrence, request.greedily, tuple(request.earlier)
                )
            self._in_flight[call] = InFlight(call, request, slot, worker, *returned)
            self._completions.add(call, returned[0])
            self._free.add(slot)

    def _collect(self, timeout_s: float, waited_s: float) -> None:
        """Take groups that have finished; failed requests wait again, or are an error if they have failed too often."""
        if not self._in_flight and not self.workers.are_starting:
            if self.needs_push:
                return
            raise RolloutError("no worker holds the current weights")
        underway, began, failure = list(self._under_way), time.monotonic(), None
        if timeout_s > 0:
            self._woken.wait(timeout_s)
        self._woken.clear()
        waited_s += time.monotonic() - began
        for call, result in self._completions.take():
            sent = self._in_flight.get(call)
            if sent is not None:  # else it was given up
                ended = self._take(sent, result)
                failure = failure or ended
        if failure is not None:
            raise failure
        self._require_in_time(underway, waited_s)

    def _take(self, sent: InFlight, result: Result) -> RolloutError | None:
        """The result of a call that has returned; the error of a request that has failed too often."""
        request, batch = sent.request, sent.request.batch
        try:
            group = self._accepted(result(), sent)
        except StaleWeightsError as error:
            self._ended(sent)
            request.earlier.clear()
            return self._retry(request, cause_of(error), is_loss=False)
        except RayError as error:
            return self._failed(sent, error)
        self._ended(sent)
        batch.finished.append((request.index, group))
        batch.unfinished -= 1
        if not batch.options.one_deadline:
            batch.left_s = self._timeout_s
        self._waiting.finished(group)
        return None

    def _failed(self, sent: InFlight, error: RayError) -> RolloutError | None:
        """What becomes of a request whose call has failed."""
        request, cause = sent.request, error.cause if isinstance(error, RayTaskError) else None
        if isinstance(cause, FramesLostError):
            self._ended(sent)
            return RolloutError(str(cause))
        loss = _loss_kind(error)
        if loss and not sent.is_lost:
            self.workers.replace_worker(sent.slot, loss, cause_of(error), error)
        self._ended(sent)
        if isinstance(cause, GroupLostError):
            request.is_sampled_again = True
            self._waiting.add(request)
            return None
        return self._retry(request, cause_of(error), is_loss=bool(loss), lost=sent)

    def _accepted(self, summary: GroupSummary, sent: InFlight) -> RemoteGroup:
        """The group, if no token of it was sampled with weights older than its batch allows."""
        request, pushed = sent.request, self.workers.version
        max_lag = request.batch.options.max_lag
        versions = {turn.policy_version for trajectory in summary.trajectories_G for turn in trajectory.turns}
        is_recorded = request.restored is not None and not request.is_sampled_again
        if not is_recorded and pushed is not None and any(not pushed - max_lag <= one <= pushed for one in versions):
            behind = f", nor up to {max_lag} pushes before it" if max_lag else ""
            raise StaleWeightsError(f"{sent.slot.name} sampled with weights {sorted(versions)}, not {pushed}{behind}")
        sent.slot.consecutive_losses = 0
        origin = RolloutOrigin(request.step, request.occurrence, request.greedily, sent.sent_s, time.monotonic())
        if request.restored is not None:
            origin = request.restored.origin
        return RemoteGroup(request.task, summary, sent.group, sent.pixels, origin)

    def _poll_workers(self) -> None:
        """Check every worker; the requests of lost ones wait again, with their siblings' turns."""
        self.workers.poll()
        for lost in self.workers.take_lost():
            for sent in [self._in_flight[call] for call in sorted(lost.worker.calls)]:
                self._ended(sent)
                if failure := self._retry(sent.request, lost.cause, is_loss=True, lost=sent):
                    raise failure

    def _ended(self, sent: InFlight) -> None:
        """A call has returned, was lost, or is given up."""
        del self._in_flight[sent.call]
        sent.worker.calls.discard(sent.call)
        batch = sent.request.batch
        batch.in_flight -= 1
        if not batch.in_flight:
            self._under_way.discard(batch)
        self._free.add(sent.slot)

    def _keep_turns(self, call: int, turns: ray.ObjectRef) -> None:
        """A heartbeat has reported turns of a call."""
        if sent := self._in_flight.get(call):
            sent.turns.append(turns)

    def _retry(
        self, request: RolloutRequest, cause: str, *, is_loss: bool, lost: InFlight | None = None
    ) -> RolloutError | None:
        """Put the request first in line again; an error if it has failed too often.

        Args:
            lost: the call from whose turns it goes on.
        """
        name = request.task.task_id
        request.losses, request.failures = request.losses + is_loss, request.failures + (not is_loss)
        if lost is not None and lost.turns:
            request.earlier.append(EarlierCall(lost.call, tuple(lost.turns)))
        self._waiting.add(request)
        if request.losses >= MAX_LOSSES:
            return RolloutError(f"could not roll out task {name}: {MAX_LOSSES} workers were lost over it: {cause}")
        return RolloutError(f"could not roll out task {name}: {cause}") if request.failures >= MAX_FAILURES else None

    def _require_in_time(self, batches: Iterable[RolloutBatch], waited_s: float) -> None:
        """Only time counts in which a worker was there: a start has a deadline of its own."""
        if not self.workers.has_ready:
            return
        for batch in batches:
            batch.left_s -= waited_s
            if batch.unfinished and batch.left_s < 0:
                left = batch.unfinished
                what = f"none of {left} tasks finished"
                if batch.options.one_deadline:
                    what = f"could not roll out {left} tasks: no answer"
                raise RolloutError(f"{what} within {self._timeout_s:g} s (rollout.call_timeout_s)")


def _loss_kind(error: RayError) -> str:
    """The kind of fault if a call failed because its worker was lost; else empty."""
    if isinstance(error, WORKER_IS_GONE):
        return "worker_died"
    return "engine_died" if isinstance(error, RayTaskError) and isinstance(error.cause, EngineGoneError) else ""
