"""Reward workers: groups scored in processes of their own, so that a user's reward can raise, hang, leak or crash.

| fault | detected by, when | recovery |
|---|---|---|
| a reward raises, returns NaN or no number | the worker, at once | its trajectory is masked and counted by cause |
| a reward hangs | SIGALRM in the worker, after `scoring.timeout_s` | as above, cause "timeout" |
| a worker does not react to SIGALRM | the pool, `GRACE_S` after all alarms | killed, replaced; the group is masked |
| a worker dies | the pool, at once | replaced; another tries each term, then scores; the term it dies of is masked |
| a reward cannot be loaded on a worker's node | the pool, at its first group | the run ends, naming the term |
| a worker leaks memory | the pool, after each group | replaced from half of `scoring.memory_mib` on |
| a call needs too much memory | the kernel, at `scoring.memory_mib` | MemoryError: masked, if in a new worker too |
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from actors.cluster.placement import incarnation_name
from actors.groups import GroupLostError, is_lost
from actors.worker.completion_queue import CompletionQueue, Result
from actors.worker.label import WorkerLabel, label
from actors.worker.memory import own_memory_mib
from actors.worker.process import ProcessLocation, WorkerProcess, on_next_line, own_location
from actors.worker.waiting import COLLECT_S, WORKER_IS_GONE, cause_of, first_line
from rewards.failures import cause_line
from rewards.limits import limits
from rewards.registry import ADDS_UP, OF_TOOL, RewardLoadError, resolve
from rewards.scoring import WeightedReward, score_group
from rl.config.errors import ConfigError
from rl.config.rewards import RewardTermConfig, ScoringConfig
from rl.group_summary import RemoteGroup
from rl.tracking.lanes import Interval
from rl.trajectory import Fault, RewardFailure, Rewards, ScoredGroup, Segment, TrajectoryGroup, WorkSpan

log = logging.getLogger(__name__)

Restore = Callable[[Sequence[RemoteGroup]], list[RemoteGroup]]

GRACE_S = 5.0  # beyond scoring.timeout_s, before a worker that ignores its own alarm is killed
START_S = 120.0  # for a worker to start and load its rewards, before its first group
MOST_SPANS_KEPT = 100_000  # of work, until somebody takes them
POLL_S = 0.5  # between two checks of deadlines, and of which workers have started


class RewardError(RuntimeError):
    """Too many trajectories could not be scored; the message names the first cause."""


class RewardWorker:
    """Scores groups in its own process. Holds the resolved reward terms and nothing else."""

    def __init__(self, scoring: ScoringConfig) -> None:
        self._label = WorkerLabel()
        self._terms: list[WeightedReward] = []
        self._unloadable: RewardLoadError | None = None
        self._scoring = scoring

    def __repr__(self) -> str:
        return str(self._label)

    def load(self, name: str, term: RewardTermConfig, _before: None = None) -> None:
        """Load one term; if that fails, or ends this process, its caller knows which term did it.

        Args:
            _before: what loading the term before has returned; Ray sends this call once its caller has that, or the
                answer of one term would be lost with the process that the next one ends.
        """
        try:
            self._terms += weighted_rewards({name: term})
        except RewardLoadError as error:
            self._unloadable = error
            raise

    def location(self) -> ProcessLocation:
        """Of this process; asked once the rewards are loaded, for its limits count from there."""
        self._guard = limits(self._scoring.timeout_s, self._scoring.memory_mib)
        self._baseline_mib = own_memory_mib()  # a judge model is no leak
        return own_location()

    def probe(self, name: str, group: TrajectoryGroup, _before: None = None) -> None:
        """Compute one term alone: if that ends this process, its caller knows which term did; `_before` as in load."""
        terms = [term for term in self._terms if term.name == name]
        score_group(group, terms, calls=self._scoring.calls, guard=self._guard)

    def score(self, group: TrajectoryGroup, step: int) -> tuple[Rewards, float, Interval]:
        """The rewards of each sibling, the MiB by which this process has grown since its start, and when it worked."""
        self._label.at(step)
        start_s = time.time()
        if self._unloadable:  # never without one of its terms
            raise self._unloadable
        scored = score_group(group, self._terms, calls=self._scoring.calls, guard=self._guard)
        return scored.rewards_G, own_memory_mib() - self._baseline_mib, (start_s, time.time())


@dataclass(slots=True, eq=False)
class RewardSlot:
    """One of the fixed number of reward workers, and the process that fills it."""

    name: str
    worker: Any
    process: WorkerProcess  # started once the rewards are loaded
    loads: Mapping[str, ray.ObjectRef]  # by term, in the order in which they are loaded
    replaced: int = 0
    groups: int = 0  # scored by this worker
    open_fault: Fault | None = None  # how the last worker was lost, until this one has answered


@dataclass(slots=True, eq=False)
class ScoreRequest:
    """A group to score, and its scores once they are there."""

    group: RemoteGroup
    step: int
    has_lost_a_worker: bool = False
    result: ScoredGroup[RemoteGroup] | None = None


@dataclass(slots=True)
class InFlight:
    """A request that was sent to a worker."""

    request: ScoreRequest
    slot: RewardSlot
    timeout_s: float
    deadline: float  # time.monotonic(); moves to timeout_s after its start if the worker is still starting
    has_started: bool = False
    probes: Mapping[str, ray.ObjectRef] = field(
        default_factory=dict
    )  # by term, before the group: of one that has lost a worker


class RewardPool:
    """Driver's end of the reward workers: scores groups; a worker that hangs, dies or leaks is replaced.

    Groups may come one by one: `advance` hands them out and collects scores, and need not wait.
    """

    def __init__(
        self,
        terms: Mapping[str, RewardTermConfig],
        scoring: ScoringConfig,
        options: Callable[[int], Mapping[str, Any]],
        restore: Restore,
    ) -> None:
        """
        Args:
            restore: rolls groups out again that were lost with their node.
        """
        self._terms, self._scoring, self._options, self._restore = terms, scoring, options, restore
        self._faults: list[Fault] = []
        self._spans: deque[WorkSpan] = deque(maxlen=MOST_SPANS_KEPT)
        self._slots = [self._launch(index) for index in range(scoring.num_workers)]
        self._waiting: deque[ScoreRequest] = deque()
        self._lost: list[ScoreRequest] = []  # their groups were lost with a node
        self._idle = deque(range(scoring.num_workers))  # slots, by index
        self._calls, self._completions = itertools.count(), CompletionQueue()
        self._in_flight: dict[int, InFlight] = {}  # by call
        self._last_deadlines_s = 0.0  # when they were looked at

    def score_all(self, groups: Sequence[RemoteGroup], *, step: int) -> list[ScoredGroup[RemoteGroup]]:
        """Score groups, in order; those that cannot be come back with failures in place of rewards, however many."""
        requests = [self.submit(group, step=step) for group in groups]
        for request in requests:
            while request.result is None:
                self.advance(POLL_S)
                self.restore_lost()
        return [request.result for request in requests]

    def submit(self, group: RemoteGroup, *, step: int) -> ScoreRequest:
        """Begin to score a group; `advance` moves it on until its result is there."""
        request = ScoreRequest(group, step)
        self._waiting.append(request)
        self._dispatch()
        return request

    def advance(self, timeout_s: float = 0.0) -> None:
        """Hand out groups and collect scores; waits at most `timeout_s` for one.

        Raises:
            ConfigError: a reward cannot be loaded where a worker runs.
        """
        self._dispatch()
        for sent, result in self._finished(timeout_s):
            self._idle.append(self._slots.index(sent.slot))
            try:
                sent.request.result = self._collect(sent, result)
            except GroupLostError as error:
                log.warning("task %s is rolled out again: %s", sent.request.group.task.task_id, error)
                self._lost.append(sent.request)
                continue
            if sent.request.result is None:
                sent.request.has_lost_a_worker = True
                self._waiting.appendleft(sent.request)
        self._dispatch()

    def restore_lost(self) -> None:
        """Roll out again what was lost with its node. It waits for that: not for the one who waits for learners."""
        while self._lost:
            (self._lost[0].group,) = self._restore([self._lost[0].group])
            self._waiting.appendleft(self._lost.pop(0))
        self._dispatch()

    def wake(self, listener: threading.Event) -> None:
        """Set `listener` whenever there is something for `advance` to do."""
        self._completions.wake(listener)

    def forget(self) -> None:
        """Give up what is not scored yet; workers end what they are at."""
        self._waiting.clear()
        self._lost.clear()

    def take_faults(self) -> list[Fault]:
        """Faults recovered from since the last call of this method."""
        for slot in self._slots:
            if slot.open_fault is not None:  # its replacement has had no group yet, or is still starting
                self._recovered(slot)
        faults, self._faults = self._faults, []
        return faults

    def take_spans(self) -> list[WorkSpan]:
        """When which worker scored a group, since the last call of this method."""
        spans = list(self._spans)
        self._spans.clear()
        return spans

    def _dispatch(self) -> None:
        while self._waiting and self._idle:
            request, slot, call = self._waiting.popleft(), self._slots[self._idle.popleft()], next(self._calls)
            self._in_flight[call] = self._sent(request, slot)
            score = slot.worker.score.options(name=label(slot.process.name, request.step))
            self._completions.add(call, score.remote(request.group.reference, request.step))

    def _sent(self, request: ScoreRequest, slot: RewardSlot) -> InFlight:
        """Deadline of a request at a worker; one that has lost a worker goes there term by term first."""
        probes: dict[str, ray.ObjectRef] = {}
        if request.has_lost_a_worker and len(self._terms) > 1:
            for name in self._terms:
                probes[name] = slot.worker.probe.remote(name, request.group.reference, *list(probes.values())[-1:])
        calls = max(len(request.group.trajectories_G), 1) * (2 if probes else 1)
        timeout_s = self._scoring.timeout_s * calls + GRACE_S
        return InFlight(request, slot, timeout_s, time.monotonic() + START_S + timeout_s, probes=probes)

    def _finished(self, timeout_s: float) -> list[tuple[InFlight, Result]]:
        """Calls that have returned, or else those past their deadline, whose result is to raise GetTimeoutError."""
        if not self._in_flight:
            return []
        arrived = self._completions.take(timeout_s)
        done = [(self._in_flight.pop(call), result) for call, result in arrived if call in self._in_flight]
        now = time.monotonic()
        if done or now - self._last_deadlines_s < POLL_S:
            return done
        self._last_deadlines_s = now
        for sent in self._in_flight.values():
            if not sent.has_started and sent.slot.process.has_answered:
                sent.has_started, sent.deadline = True, now + sent.timeout_s
        overdue = [call for call, sent in self._in_flight.items() if sent.deadline <= now]
        return [(self._in_flight.pop(call), _raise_overdue) for call in overdue]

    def _collect(self, sent: InFlight, result: Result) -> ScoredGroup[RemoteGroup] | None:
        """The result of a call, or a masked group if it failed; None: another worker has to score the group."""
        slot, group, is_last = sent.slot, sent.request.group, sent.request.has_lost_a_worker
        try:
            rewards_G, grown_mib, worked = result()
        except GetTimeoutError:
            detail = f"no result within {sent.timeout_s:.0f} s of {', '.join(self._terms)}; worker killed"
            failure = RewardFailure(self._lost_term(sent), "timeout", detail, group.task.task_id)
            self._replace(slot, "worker_hung", cause_line(failure), "the group is masked")
        except WORKER_IS_GONE as error:
            failure = RewardFailure(self._lost_term(sent), "worker_died", first_line(error), group.task.task_id)
            action = "the group is masked" if is_last else "its group is scored by another worker"
            self._replace(slot, "worker_died", cause_line(failure), action, error)
            if not is_last:
                return None
        except RayError as error:
            if is_lost(error):
                raise GroupLostError(first_line(error)) from error
            self._refuse_unloadable(slot)
            failure = RewardFailure("*", "raised", cause_of(error), group.task.task_id)
            self._replace(slot, "worker_failed", failure.detail, "the group is masked", error)
        else:
            self._spans.append(WorkSpan(slot.name, "reward", *worked))
            return self._accept(slot, ScoredGroup(group, rewards_G), grown_mib, is_last=is_last)
        return ScoredGroup(group, (failure,) * len(group.trajectories_G))

    def _lost_term(self, sent: InFlight) -> str:
        """The term during which a worker was lost: the only one, or the first whose load or probe did not return."""
        if len(self._terms) == 1:
            return next(iter(self._terms))
        for name, call in (*sent.slot.loads.items(), *sent.probes.items()):
            try:
                ray.get(call, timeout=0)
            except RayError:  # GetTimeoutError is one
                return name
        return "*"

    def _refuse_unloadable(self, slot: RewardSlot) -> None:
        """
        Raises:
            ConfigError: a term cannot be loaded where this worker runs; it names term and node.
        """
        for name, load in slot.loads.items():
            try:
                ray.get(load, timeout=COLLECT_S)
            except RayTaskError as error:
                if isinstance(error.cause, RewardLoadError):
                    where = slot.process.location
                    node = f" on node {where.address}" if where else ""
                    raise ConfigError(f"rewards.{name}: {error.cause}{node}") from error
            except RayError:
                return

    def _accept(self, slot: RewardSlot, scored: ScoredGroup, grown_mib: float, *, is_last: bool) -> ScoredGroup | None:
        """The result; None if memory ran out because of what earlier groups had left behind."""
        was_fresh = slot.groups == 0
        slot.groups += 1
        if slot.open_fault is not None:
            self._recovered(slot)
        ran_out = any(isinstance(v, RewardFailure) and _is_short_of_memory(v) for v in scored.rewards_G)
        if ran_out or 0 < self._scoring.memory_mib < 2 * grown_mib:
            cause = f"grew by {grown_mib:.0f} MiB{', and ran out' if ran_out else ''} (scoring.memory_mib)"
            self._replace(slot, "recycled", cause, "replaced between two groups")
        return None if ran_out and not was_fresh and not is_last else scored

    def _launch(self, index: int, replaced: int = 0) -> RewardSlot:
        options = dict(self._options(index))
        options["name"] = incarnation_name(options["name"], replaced)
        worker = ray.remote(RewardWorker).options(**options).remote(self._scoring)
        loads: dict[str, ray.ObjectRef] = {}
        for name, term in self._terms.items():
            loads[name] = worker.load.remote(name, term, *list(loads.values())[-1:])
        process = WorkerProcess(options["name"], worker.location.remote())
        return RewardSlot(f"reward/{index}", worker, process, loads, replaced)

    def _replace(self, slot: RewardSlot, kind: str, cause: str, action: str, error: Exception | None = None) -> None:
        failure = None if kind == "recycled" else slot.process.failure(error)
        where = on_next_line(failure)
        log.warning("%s is replaced (%s): %s; %s%s", slot.name, kind.replace("_", " "), cause, action, where)
        if slot.open_fault is not None:  # the lost worker was a replacement that never answered
            self._recovered(slot)
        ray.kill(slot.worker, no_restart=True)  # SIGKILL after 5 s even if the process is stopped
        index = self._slots.index(slot)
        self._slots[index] = replacement = self._launch(index, slot.replaced + 1)
        replacement.open_fault = Fault(kind, slot.name, cause, action, time.time(), 0.0, failure)

    def _recovered(self, slot: RewardSlot) -> None:
        self._faults.append(replace(slot.open_fault, recovery_s=time.time() - slot.open_fault.detected_s))
        slot.open_fault = None

    def refuse_too_many_failures(self, scored: Sequence[ScoredGroup]) -> None:
        """Stop a run whose rewards are broken.

        Raises:
            RewardError: more than scoring.max_failed_share of the trajectories could not be scored.
        """
        rewards = [reward for group in scored for reward in group.rewards_G]
        failures = [r for r in rewards if isinstance(r, RewardFailure) and r.cause != "video_error"]
        if len(failures) > self._scoring.max_failed_share * max(len(rewards), 1):
            first = failures[0]
            raise RewardError(
                f"{len(failures)} of {len(rewards)} trajectories could not be scored (scoring.max_failed_share="
                f"{self._scoring.max_failed_share:g}); first: {cause_line(first)}"
            )


def weighted_rewards(terms: Mapping[str, RewardTermConfig]) -> list[WeightedReward]:
    """Resolve every term of the configuration; errors name the term and the nearest built-in."""
    return [
        WeightedReward(
            name,
            resolve(term.fn, term.args, segment=term.segment),
            Segment[term.segment.upper()],
            term.weight,
            term.calls or ("sum" if term.fn in ADDS_UP else ""),
            term.tool or OF_TOOL.get(term.fn, ""),
        )
        for name, term in terms.items()
    ]


def _raise_overdue() -> None:
    raise GetTimeoutError("no result within the deadline")


def _is_short_of_memory(failure: RewardFailure) -> bool:
    return failure.cause == "memory"
