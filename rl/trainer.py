"""The whole loop. No Ray, no torch, no config object: three parts behind three small Protocols.

| stage | consumes | produces | waits for |
|---|---|---|---|
| rollouts.start | VideoTask | - | nothing |
| rollouts.collect | - | SampledStep | engines, reward workers; deadlines rollout.call_timeout_s, scoring.timeout_s |
| learners.receive | ScoredGroup | ScoredGroup as they arrived | learner ranks; engines, where one was lost |
| learners.update | - | LearnerUpdate | learner ranks; deadline learner.timeout_s |
| rollouts.settle | - | - | in a deterministic run, the steps started; deadlines as of collect |
| weights.push | - | policy version | learners, then engines; deadline weight_sync.timeout_s |

Rollouts run up to `Schedule.max_lag` steps ahead. A step is started when the weights are at most `max_lag` pushes older
than those it will be learned with, and always at the same place of this loop; in a deterministic run nothing is under
way while weights change. So step s is sampled with the weights after s - max_lag steps, or the first, however fast
anything is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from rl.tracking.stage_clock import StageClock
from rl.trajectory import Drawing, LearnerUpdate, RewardFailure, SampledStep, ScoredGroup, VideoTask


class Rollouts(Protocol):
    """Samples steps: rolls tasks out and scores them, also while the caller does something else."""

    def start(self, step: int, drawing: Drawing) -> None:
        """Begin to sample a step."""

    def collect(self, step: int) -> SampledStep:
        """The groups of a step that was started. A task that repeats in a step gets other seeds."""

    def settle(self) -> None:
        """Return when the engines' weights may change."""


class Learners(Protocol):
    """Splits, credits, and takes the optimizer steps."""

    def receive(self, scored: Sequence[ScoredGroup]) -> Sequence[ScoredGroup]:
        """Take a step's groups; what is lost on the way is made again. Returns what will be learned from."""

    def update(self, *, step: int, version: int) -> LearnerUpdate:
        """Learn from the groups received."""


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
    max_lag: int = 0  # steps that are sampled ahead of the one that is learned from
    evaluate_first: bool = False  # the start of a run; or where it was stopped before its evaluation was done


TasksForStep = Callable[[int, int], Sequence[VideoTask]]  # (step, attempt) -> tasks; a pure function
Report = Callable[[int, Sequence[ScoredGroup], LearnerUpdate, Mapping[str, float]], None]


def train(
    schedule: Schedule,
    *,
    tasks_for: TasksForStep,
    rollouts: Rollouts,
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
    version, started = weights.push(), schedule.first_step

    def start_through(last: int) -> None:
        nonlocal started
        for step in range(started, min(last + 1, schedule.steps)):
            rollouts.start(step, draw(schedule, step, tasks_for))
            started = step + 1

    if schedule.evaluate_first and evaluate(schedule.first_step):
        save(schedule.first_step, version)
    for step in range(schedule.first_step, schedule.steps):
        clock = StageClock()
        start_through(step + schedule.max_lag)
        with clock("wait"):
            sampled = rollouts.collect(step)
        with clock("update"):
            groups = learners.receive(sampled.groups)
            learned = learners.update(step=step, version=version)
        with clock("wait"):
            rollouts.settle()
        with clock("sync"):
            version = weights.push() if learned.steps_taken else version  # what has not changed is not sent
        if schedule.max_lag:  # engines go on while the step is reported, evaluated and saved
            start_through(step + 1 + schedule.max_lag)
        timed = {"seconds/rollout": sampled.rollout_s, "seconds/reward": sampled.reward_s, **clock.metrics()}
        counters = {"policy/version": version, "rollout/resampled_groups": sampled.resampled}
        report(step, groups, learned, {**counters, **timed})
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


def draw(schedule: Schedule, step: int, tasks_for: TasksForStep) -> Drawing:
    """One step's tasks; zero-variance groups are replaced a bounded number of times (DAPO's dynamic sampling)."""
    kept: list[ScoredGroup] = []
    tasks, resampled = tasks_for(step, 0), 0
    wanted = len(tasks)
    for attempt in range(schedule.resample_attempts + 1):
        drawn = yield tasks, attempt
        last = attempt == schedule.resample_attempts
        kept += [group for group in drawn if last or not is_zero_variance(group)]
        missing = wanted - len(kept)
        if missing == 0:
            break
        resampled += missing
        tasks = tasks_for(step, attempt + 1)[:missing]
    return kept, resampled
