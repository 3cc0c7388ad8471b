"""The whole loop. No Ray, no torch, no config object: four parts behind four small Protocols.

| stage | consumes | produces | waits for |
|---|---|---|---|
| rollouts.generate | VideoTask | TrajectoryGroup | engines; deadline rollout.call_timeout_s |
| rewards.score | TrajectoryGroup | ScoredGroup | reward workers; deadline scoring.timeout_s |
| learners.update | ScoredGroup | LearnerUpdate | learner ranks; deadline learner.timeout_s |
| weights.push | - | policy version | learners, then engines; deadline weight_sync.timeout_s |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from rl.tracking.stage_clock import StageClock
from rl.trajectory import LearnerUpdate, RewardFailure, ScoredGroup, TrajectoryGroup, VideoTask


class Rollouts(Protocol):
    """Makes trajectories. Order in = order out; a task that repeats in a step gets other seeds."""

    def generate(self, tasks: Sequence[VideoTask], *, step: int, attempt: int = 0) -> list[TrajectoryGroup]: ...


class Rewards(Protocol):
    """Scores trajectories. Order in = order out."""

    def score(self, groups: Sequence[TrajectoryGroup], *, step: int) -> list[ScoredGroup]: ...


class Learners(Protocol):
    """Splits, credits, and takes the optimizer steps."""

    def update(self, scored: Sequence[ScoredGroup], *, step: int) -> LearnerUpdate: ...


class Weights(Protocol):
    """Carries the learners' weights to every engine and returns the version they now run."""

    def push(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Schedule:
    """When things happen, in steps."""

    first_step: int
    steps: int
    save_every: int
    eval_every: int  # 0: only before the first and after the last step
    resample_attempts: int = 0  # dynamic sampling
    evaluate_first: bool = False  # the start of a run; or where it was stopped before its evaluation was done


TasksForStep = Callable[[int, int], Sequence[VideoTask]]  # (step, attempt) -> tasks; a pure function
Report = Callable[[int, Sequence[ScoredGroup], LearnerUpdate, Mapping[str, float]], None]


def train(
    schedule: Schedule,
    *,
    tasks_for: TasksForStep,
    rollouts: Rollouts,
    rewards: Rewards,
    learners: Learners,
    weights: Weights,
    report: Report,
    save: Callable[[int, int], None],
    evaluate: Callable[[int], bool],
) -> int:
    """Train from `schedule.first_step` to `schedule.steps`; returns the last policy version.

    Args:
        tasks_for: the tasks of a step, and replacements for zero-variance groups at attempt 1, 2, ...
        report: called after each step with the scored groups, the update and the numbers of the loop itself.
        save: called with (next step, policy version) when a checkpoint is due; the last step is always saved.
        evaluate: called with the step reached when an evaluation is due; a policy it finds the best so far is saved.
    """
    version = weights.push()
    if schedule.evaluate_first and evaluate(schedule.first_step):
        save(schedule.first_step, version)
    for step in range(schedule.first_step, schedule.steps):
        clock = StageClock()
        scored, resampled = _sample(schedule, step, tasks_for, rollouts, rewards, clock)
        with clock("update"):
            learned = learners.update(scored, step=step)
        with clock("sync"):
            version = weights.push() if learned.steps_taken else version  # what has not changed is not sent
        counters = {"policy/version": version, "rollout/resampled_groups": resampled}
        report(step, scored, learned, {**counters, **clock.metrics()})
        # evaluated before saving: a run killed in between repeats the step, and so the evaluation
        is_best = is_due(step + 1, schedule.eval_every, schedule.steps) and evaluate(step + 1)
        if is_best or is_due(step + 1, schedule.save_every, schedule.steps):
            save(step + 1, version)
    return version


def is_due(steps_done: int, every: int, total: int) -> bool:
    """Every so many steps (0: never in between), and always after the last."""
    return steps_done == total or (every > 0 and steps_done % every == 0)


def is_zero_variance(scored: ScoredGroup) -> bool:
    """All siblings got the same rewards in both roles: nothing can be learned from this group."""
    rewards = [reward for reward in scored.rewards_G if not isinstance(reward, RewardFailure)]
    return len({(reward.sampling, reward.reasoning) for reward in rewards}) <= 1


def _sample(
    schedule: Schedule,
    step: int,
    tasks_for: TasksForStep,
    rollouts: Rollouts,
    rewards: Rewards,
    clock: StageClock,
) -> tuple[list[ScoredGroup], int]:
    """One step's scored groups; zero-variance ones are replaced a bounded number of times (DAPO's dynamic sampling)."""
    kept: list[ScoredGroup] = []
    drawn: list[ScoredGroup] = []
    tasks, resampled = tasks_for(step, 0), 0
    wanted = len(tasks)
    for attempt in range(schedule.resample_attempts + 1):
        with clock("rollout"):
            groups = rollouts.generate(tasks, step=step, attempt=attempt)
        with clock("reward"):
            drawn = rewards.score(groups, step=step)
        last = attempt == schedule.resample_attempts
        kept += [group for group in drawn if last or not is_zero_variance(group)]
        missing = wanted - len(kept)
        if missing == 0:
            break
        resampled += missing
        tasks = tasks_for(step, attempt + 1)[:missing]
    return kept, resampled
