"""Rollout requests: groups to roll out, the batches they were started in, and the order in which they are handed out.

Which group runs when changes the time a step takes and nothing else: seeds follow from step, task and occurrence.
"""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from actors.groups import EarlierCall
from rl.group_summary import RemoteGroup, TrajectorySummary
from rl.trajectory import VideoTask

if TYPE_CHECKING:
    import ray

    from actors.worker_slot import WorkerHandle, WorkerSlot

PREFILL_RATE = 32  # prompt tokens that an engine reads in the time of one sampled token, roughly


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How the requests of a batch are rolled out."""

    step: int
    greedily: bool
    max_in_flight: int  # groups at a time, per worker
    one_deadline: bool = True  # the timeout bounds all groups together; False: the time in which none finishes
    max_lag: int = 0  # pushes by which the weights that sampled a group may be behind when it has finished
    is_urgent: bool = True  # somebody waits for it and does nothing else: it goes before what is made in advance


@dataclass(slots=True, eq=False)
class RolloutBatch:
    """Requests that were started together, and what has come of them."""

    serial: int  # batches are served in this order
    options: GenerationOptions
    unfinished: int
    left_s: float  # until its deadline; only time counts in which the driver waits and a worker is there
    finished: list[tuple[int, RemoteGroup]] = field(default_factory=list)  # index of the task, its group; not taken
    in_flight: int = 0  # requests that workers have

    def take(self) -> list[tuple[int, RemoteGroup]]:
        """Groups that have finished since the last call of this method, each with the index of its task."""
        taken, self.finished = self.finished, []
        return taken


@dataclass(slots=True, eq=False)
class RolloutRequest:
    """A group to roll out, and where its siblings' turns are that have been sampled so far."""

    batch: RolloutBatch
    index: int  # of its task in the batch
    task: VideoTask
    occurrence: int
    restored: RemoteGroup | None = None  # it was rolled out before and is lost, whole or in part
    is_sampled_again: bool = False  # its tokens are lost as well
    earlier: list[EarlierCall] = field(default_factory=list)  # that were lost with their workers
    losses: int = 0  # workers lost while they had it
    failures: int = 0

    @property
    def step(self) -> int:
        """Of its seeds."""
        return self.batch.options.step if self.restored is None else self.restored.origin.step

    @property
    def greedily(self) -> bool:
        """One greedy trajectory instead of sampled siblings."""
        return self.batch.options.greedily if self.restored is None else self.restored.origin.greedily


class StaleWeightsError(RuntimeError):
    """A group was sampled with older weights than its batch allows."""


@dataclass(slots=True, eq=False)
class InFlight:
    """A request that was sent to a worker."""

    call: int
    request: RolloutRequest
    slot: WorkerSlot
    worker: WorkerHandle
    summary: ray.ObjectRef  # of its group, for the driver
    group: ray.ObjectRef
    pixels: ray.ObjectRef
    sent_s: float = field(default_factory=time.monotonic)
    turns: list[ray.ObjectRef] = field(default_factory=list)  # that heartbeats have reported

    @property
    def is_lost(self) -> bool:
        """Its worker has been replaced."""
        return self.slot.worker is not self.worker


class WaitingRequests:
    """Requests that no worker has: urgent batches first, then batch by batch; of one, failed ones, then the longest."""

    def __init__(self) -> None:
        self._expected = ExpectedLengths()
        self._heap: list[tuple[tuple[bool, int, bool, float, int], RolloutRequest]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, request: RolloutRequest) -> None:
        """Put a request in line."""
        batch, is_new = request.batch, request.losses + request.failures == 0
        length = self._expected.of(request.task)
        key = (not batch.options.is_urgent, batch.serial, is_new, -length, request.index)
        heapq.heappush(self._heap, (key, request))

    def first(self) -> RolloutRequest:
        """The one that is next; it stays."""
        return self._heap[0][1]

    def pop(self) -> RolloutRequest:
        """The one that is next."""
        return heapq.heappop(self._heap)[1]

    def drop(self, batch: RolloutBatch) -> None:
        """Forget a batch."""
        self._heap = [entry for entry in self._heap if entry[1].batch is not batch]
        heapq.heapify(self._heap)

    def finished(self, group: RemoteGroup) -> None:
        """Learn how long a group was."""
        self._expected.add(group)


class ExpectedLengths:
    """How long a task's next group will take: as its last one did; of a task not met before, as the mean of all."""

    def __init__(self) -> None:
        self._known: dict[str, float] = {}
        self._total = 0.0

    def of(self, task: VideoTask) -> float:
        """In sampled tokens of the longest sibling, its prompt counted in."""
        return self._known.get(task.task_id, self._total / max(len(self._known), 1))

    def add(self, group: RemoteGroup) -> None:
        """The group of a task has finished; frames read are part of its prompts."""
        length = max((_length(trajectory) for trajectory in group.trajectories_G), default=0)
        self._total += length - self._known.get(group.task.task_id, 0.0)
        self._known[group.task.task_id] = length


def _length(trajectory: TrajectorySummary) -> float:
    return sum(turn.context_tokens / PREFILL_RATE + turn.sampled_tokens for turn in trajectory.turns)
