"""Reward workers: verdicts in their own processes, so that a user's reward can raise, hang, leak or die without harm.

| what happens | who notices, when | what is done |
|---|---|---|
| a reward raises, gives NaN or no number | the worker, at once | its trajectory is masked and counted by cause |
| a reward hangs | SIGALRM in the worker, after `scoring.timeout_s` | as above, cause "timeout" |
| a worker is deaf to that, or stopped | the pool, `GRACE_S` after all alarms | killed, replaced; the group is masked |
| a worker dies | the pool, at once | replaced; a fresh one scores the group, or it is masked if that dies too |
| a worker has grown | the pool, after each group | replaced from half of `scoring.memory_mib` on |
| a call takes too much memory | the kernel, at `scoring.memory_mib` | MemoryError: masked, if in a fresh worker too |
"""

from __future__ import annotations

import logging
import resource
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import psutil
import ray
from ray.exceptions import GetTimeoutError, RayError

from actors.memory import own_memory_mib
from actors.placement import named
from actors.waiting import COLLECT_S, WORKER_IS_GONE, first_line
from rewards.registry import resolve
from rewards.scoring import WeightedReward, score_group
from rl.config.rewards import RewardTermConfig, ScoringConfig
from rl.trajectory import Fault, RewardFailure, ScoredGroup, Segment, TrajectoryGroup

log = logging.getLogger(__name__)

GRACE_S = 5.0  # beyond scoring.timeout_s, before a worker that ignores its own alarm is killed
START_S = 120.0  # for a worker to start and load its rewards, before its first group
GLANCE_S = 0.5  # between two looks at which workers have started
MIB = 2**20


class RewardError(RuntimeError):
    """Too many rewards failed; the message names the commonest cause."""


class RewardWorker:
    """Scores groups in its own process. Holds the resolved reward terms and nothing else."""

    def __init__(self, terms: Mapping[str, RewardTermConfig], scoring: ScoringConfig) -> None:
        self._terms = weighted_rewards(terms)
        self._calls = scoring.calls
        self._guard = limits(scoring.timeout_s, scoring.memory_mib)
        self._born_mib = own_memory_mib()  # with its rewards loaded: a model that judges is no leak

    def ready(self) -> None:
        """Answers once the rewards are loaded."""

    def score(self, group: TrajectoryGroup) -> tuple[ScoredGroup, float]:
        """The group with a verdict on each sibling, and the MiB this process has grown by since its start."""
        scored = score_group(group, self._terms, calls=self._calls, guard=self._guard)
        return scored, own_memory_mib() - self._born_mib


@dataclass(slots=True, eq=False)
class Lane:
    """A worker's place in the pool."""

    name: str
    worker: Any
    born: ray.ObjectRef  # ready once it has started
    replaced: int = 0
    groups: int = 0  # scored by this worker
    lost: Fault | None = None  # why its predecessor is gone, until this one has answered


@dataclass(slots=True)
class Errand:
    """A group in the hands of a worker."""

    index: int
    lane: Lane
    patience_s: float
    deadline: float  # time.monotonic(); later, as long as the worker is starting
    is_underway: bool = False


class RewardPool:
    """Driver's end of RewardWorker. Order in = order out; a worker that hangs, dies or grows is replaced."""

    def __init__(
        self,
        terms: Mapping[str, RewardTermConfig],
        scoring: ScoringConfig,
        options: Callable[[int], Mapping[str, Any]],
    ) -> None:
        self._terms, self._scoring, self._options = terms, scoring, options
        self._faults: list[Fault] = []
        self._lanes = [self._open(index) for index in range(scoring.num_workers)]

    def score(self, groups: Sequence[TrajectoryGroup]) -> list[ScoredGroup]:
        """Verdicts on all groups.

        Raises:
            RewardError: more than scoring.max_failed_share of the trajectories could not be scored.
        """
        scored = self.score_all(groups)
        self._refuse_too_many_failures(scored)
        return scored

    def score_all(self, groups: Sequence[TrajectoryGroup]) -> list[ScoredGroup]:
        """As `score`, but failures are verdicts too, however many: for groups that come a few at a time."""
        scored: list[ScoredGroup | None] = [None] * len(groups)
        waiting, again = deque(range(len(groups))), set()  # indices; those that have lost a worker already
        busy: dict[ray.ObjectRef, Errand] = {}
        while waiting or busy:
            taken = {id(errand.lane) for errand in busy.values()}
            for lane in self._lanes:
                if waiting and id(lane) not in taken:
                    errand = self._errand(waiting.popleft(), lane, groups)
                    busy[lane.worker.score.remote(groups[errand.index])] = errand
            for reference in self._finished(busy):
                errand = busy.pop(reference)
                verdict = self._answer(reference, errand, groups[errand.index], is_last=errand.index in again)
                scored[errand.index] = verdict
                if verdict is None:
                    again.add(errand.index)
                    waiting.appendleft(errand.index)
        return scored

    def take_faults(self) -> list[Fault]:
        """What broke and was mended since the last call of this method."""
        for lane in self._lanes:
            if lane.lost is not None:  # its successor had nothing to do yet, or is still starting
                self._recovered(lane)
        faults, self._faults = self._faults, []
        return faults

    def _errand(self, index: int, lane: Lane, groups: Sequence[TrajectoryGroup]) -> Errand:
        patience_s = self._scoring.timeout_s * max(len(groups[index].trajectories_G), 1) + GRACE_S
        return Errand(index, lane, patience_s, time.monotonic() + START_S + patience_s)

    @staticmethod
    def _finished(busy: Mapping[ray.ObjectRef, Errand]) -> list[ray.ObjectRef]:
        """Those that have an answer, or none within their deadline; may be none yet."""
        for errand in busy.values():
            if not errand.is_underway and ray.wait([errand.lane.born], timeout=0)[0]:
                errand.is_underway, errand.deadline = True, time.monotonic() + errand.patience_s
        left_s = min(errand.deadline for errand in busy.values()) - time.monotonic()
        answered, _ = ray.wait(list(busy), timeout=min(max(left_s, 0.0), GLANCE_S))
        return answered or [reference for reference, errand in busy.items() if errand.deadline <= time.monotonic()]

    def _answer(
        self, reference: ray.ObjectRef, errand: Errand, group: TrajectoryGroup, *, is_last: bool
    ) -> ScoredGroup | None:
        """The verdict of a worker, or what is known in its place; None: a fresh worker is to be asked."""
        lane, overdue = errand.lane, errand.deadline <= time.monotonic()
        try:
            scored, grown_mib = ray.get(reference, timeout=0 if overdue else COLLECT_S)
        except GetTimeoutError:
            failure = RewardFailure("*", "timeout", f"no verdict within {errand.patience_s:.0f} s; worker killed")
            self._replace(lane, "worker_hung", f"{failure.detail}, on task {group.task.task_id}", "the group is masked")
        except WORKER_IS_GONE as error:
            failure = RewardFailure("*", "worker_died", first_line(error))
            action = "the group is masked" if is_last else "its group is scored by a fresh worker"
            self._replace(lane, "worker_died", f"{failure.detail}, on task {group.task.task_id}", action)
            if not is_last:
                return None
        except RayError as error:
            failure = RewardFailure("*", "raised", first_line(error))
            self._replace(lane, "worker_failed", failure.detail, "the group is masked")
        else:
            return self._accept(lane, scored, grown_mib, is_last=is_last)
        return ScoredGroup(group, (failure,) * len(group.trajectories_G))

    def _accept(self, lane: Lane, scored: ScoredGroup, grown_mib: float, *, is_last: bool) -> ScoredGroup | None:
        """The verdict, unless memory was short because of what other groups have left behind."""
        was_fresh = lane.groups == 0
        lane.groups += 1
        if lane.lost is not None:
            self._recovered(lane)
        ran_out = any(isinstance(v, RewardFailure) and _is_short_of_memory(v) for v in scored.rewards_G)
        if ran_out or 0 < self._scoring.memory_mib < 2 * grown_mib:
            cause = f"grew by {grown_mib:.0f} MiB{', and ran out' if ran_out else ''} (scoring.memory_mib)"
            self._replace(lane, "recycled", cause, "replaced between two groups")
        return None if ran_out and not was_fresh and not is_last else scored

    def _open(self, index: int, replaced: int = 0) -> Lane:
        options = dict(self._options(index))
        name = options["name"]
        options["name"] = named(name, replaced)
        worker = ray.remote(RewardWorker).options(**options).remote(self._terms, self._scoring)
        return Lane(name, worker, worker.ready.remote(), replaced)

    def _replace(self, lane: Lane, kind: str, cause: str, action: str) -> None:
        log.warning("%s: %s: %s; %s", lane.name, kind, cause, action)
        if lane.lost is not None:  # it was a successor itself, and never answered
            self._recovered(lane)
        ray.kill(lane.worker, no_restart=True)  # a process that is stopped, too: Ray waits 5 s for it to go by itself
        place = self._lanes.index(lane)
        self._lanes[place] = successor = self._open(place, lane.replaced + 1)
        successor.lost = Fault(kind, lane.name, cause, action, time.time(), 0.0)

    def _recovered(self, lane: Lane) -> None:
        self._faults.append(replace(lane.lost, recovery_s=time.time() - lane.lost.detected_s))
        lane.lost = None

    def _refuse_too_many_failures(self, scored: Sequence[ScoredGroup]) -> None:
        verdicts = [verdict for group in scored for verdict in group.rewards_G]
        failures = [v for v in verdicts if isinstance(v, RewardFailure) and v.cause != "video_error"]
        if len(failures) > self._scoring.max_failed_share * max(len(verdicts), 1):
            first = failures[0]
            raise RewardError(
                f"{len(failures)} of {len(verdicts)} trajectories could not be scored (scoring.max_failed_share="
                f"{self._scoring.max_failed_share:g}); first: reward {first.term!r} {first.cause}: {first.detail}"
            )


def weighted_rewards(terms: Mapping[str, RewardTermConfig]) -> list[WeightedReward]:
    """Resolve every term of the configuration; errors name the term and the nearest built-in."""
    return [
        WeightedReward(
            name, resolve(term.fn, term.args, segment=term.segment), Segment[term.segment.upper()], term.weight
        )
        for name, term in terms.items()
    ]


def limits(timeout_s: float, memory_mib: int) -> Callable[[], AbstractContextManager[Any]]:
    """A guard for one reward call: its deadline, and MemoryError in it beyond what this process holds now + memory_mib.

    Args:
        memory_mib: 0: no limit.
    """
    alarm = deadline(timeout_s)
    if not memory_mib:
        return alarm
    most = psutil.Process().memory_info().data + memory_mib * MIB

    @contextmanager
    def guard() -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))  # around the call only: Ray's own threads need theirs
        try:
            with alarm():
                yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))

    return guard


def deadline(seconds: float) -> Callable[[], Any]:
    """A guard for one reward call: SIGALRM raises TimeoutError in it, so the term that hangs is named.

    Actor methods run on their process's main thread, where signals arrive. Code that never returns to the interpreter
    escapes this alarm and meets the pool's own deadline instead.
    """

    def ring(_signal: int, _frame: Any) -> None:
        raise TimeoutError(f"no result within {seconds:g} s (scoring.timeout_s)")

    @contextmanager
    def guard() -> Iterator[None]:
        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)

    return guard


def _is_short_of_memory(failure: RewardFailure) -> bool:
    return failure.cause == "raised" and "MemoryError" in failure.detail.partition(":")[0]  # numpy has its own kind
