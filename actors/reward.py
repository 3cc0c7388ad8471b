"""Reward workers: verdicts in their own processes, so that a user's reward can raise, hang or die without harm."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from actors.waiting import first_line
from rewards.registry import resolve
from rewards.scoring import WeightedReward, score_group
from rl.config import RewardTermConfig, ScoringConfig
from rl.trajectory import RewardFailure, ScoredGroup, Segment, TrajectoryGroup

log = logging.getLogger(__name__)

GRACE_S = 5.0  # beyond scoring.timeout_s, before a worker that ignores its own alarm is killed


class RewardError(RuntimeError):
    """Too many rewards failed; the message names the commonest cause."""


class RewardWorker:
    """Scores groups in its own process. Holds the resolved reward terms and nothing else."""

    def __init__(self, terms: Mapping[str, RewardTermConfig], scoring: ScoringConfig) -> None:
        self._terms = weighted_rewards(terms)
        self._scoring = scoring

    def score(self, group: TrajectoryGroup) -> ScoredGroup:
        """The group with a verdict on each sibling."""
        return score_group(group, self._terms, calls=self._scoring.calls, guard=deadline(self._scoring.timeout_s))


class RewardPool:
    """Driver's end of RewardWorker. Order in = order out; a worker that hangs or dies is replaced."""

    def __init__(
        self,
        terms: Mapping[str, RewardTermConfig],
        scoring: ScoringConfig,
        options: Callable[[int], Mapping[str, Any]],
    ) -> None:
        self._terms, self._scoring, self._options = terms, scoring, options
        self._replaced = [0] * scoring.num_workers
        self._workers = [self._spawn(lane) for lane in range(scoring.num_workers)]

    def score(self, groups: Sequence[TrajectoryGroup]) -> list[ScoredGroup]:
        """Verdicts on all groups.

        Raises:
            RewardError: more than scoring.max_failed_share of the trajectories could not be scored.
        """
        scored = self.verdicts(groups)
        self._refuse_too_many_failures(scored)
        return scored

    def verdicts(self, groups: Sequence[TrajectoryGroup]) -> list[ScoredGroup]:
        """As `score`, but failures are verdicts too, however many: for groups that come a few at a time."""
        lanes = range(len(self._workers))
        queues = {lane: [i for i in range(len(groups)) if i % len(lanes) == lane] for lane in lanes}
        pending = {lane: [(i, self._workers[lane].score.remote(groups[i])) for i in queues[lane]] for lane in lanes}
        scored: list[ScoredGroup | None] = [None] * len(groups)
        while any(pending.values()):
            for lane in lanes:
                if pending[lane]:
                    index, reference = pending[lane].pop(0)
                    scored[index], died = self._await(groups[index], reference)
                    if died:  # what was queued behind it died with it
                        self._respawn(lane)
                        again = [i for i, _ in pending[lane]]
                        pending[lane] = [(i, self._workers[lane].score.remote(groups[i])) for i in again]
        return scored

    def _await(self, group: TrajectoryGroup, reference: ray.ObjectRef) -> tuple[ScoredGroup, bool]:
        """One verdict within its deadline, and whether the worker was lost over it."""
        siblings = len(group.trajectories_G)
        deadline_s = self._scoring.timeout_s * max(siblings, 1) + GRACE_S
        try:
            return ray.get(reference, timeout=deadline_s), False
        except GetTimeoutError:
            failure = RewardFailure("*", "timeout", f"no verdict within {deadline_s:.0f} s; worker killed")
        except RayActorError as error:
            failure = RewardFailure("*", "worker_died", first_line(error))
        except RayError as error:
            failure = RewardFailure("*", "raised", first_line(error))
        log.warning("reward worker lost on task %s: %s (%s)", group.task.task_id, failure.cause, failure.detail)
        return ScoredGroup(group, (failure,) * siblings), True

    def _spawn(self, lane: int) -> Any:
        options = dict(self._options(lane))
        if self._replaced[lane]:  # Ray frees a killed actor's name late, so its successor takes another
            options["name"] += f"#{self._replaced[lane]}"
        return ray.remote(RewardWorker).options(**options).remote(self._terms, self._scoring)

    def _respawn(self, lane: int) -> None:
        ray.kill(self._workers[lane], no_restart=True)
        self._replaced[lane] += 1
        self._workers[lane] = self._spawn(lane)

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
