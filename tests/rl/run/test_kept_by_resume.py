"""What a resume keeps where numbers are not exact: on a GPU, or without `rollout.deterministic`.

Every step plays the same tasks with the same seeds however often it is interrupted; none is lost, none counted twice.
Only what is drawn may differ in last bits, and with it which groups are degenerate and replaced.
"""

import contextlib
import random

from hypothesis import given
from hypothesis import strategies as st

from envs.data.dataset import tasks_for_step
from envs.rollout import derive_seed, occurrences
from rl.trainer import Schedule, train
from rl.trajectory import (
    AnswerKind,
    LearnerUpdate,
    ScoredGroup,
    SegmentRewards,
    StopReason,
    Trajectory,
    TrajectoryGroup,
    VideoTask,
)
from tests.fakes import sampled_now

STEPS, PER_STEP, GROUP, SEED = 6, 3, 2, 11
TASKS = [VideoTask(f"t{i}", "clip.mp4", "?", "A", AnswerKind.LETTER) for i in range(7)]  # an epoch ends inside step 2
ATTEMPT = 1_000_003  # between the streams of replacements, as in rl.run.train


class Killed(BaseException):
    """SIGKILL, for a loop in this process."""


class Disk:
    """What outlives a kill: the newest checkpoint, and the lines of the steps up to it and since."""

    def __init__(self):
        self.next_step, self.lines = 0, {}

    def resume(self):
        self.lines = {step: line for step, line in self.lines.items() if step < self.next_step}
        return self.next_step


class Stages:
    """Plays tasks with real seeds; luck decides which groups are degenerate. Killed at its `dies_at`-th call."""

    def __init__(self, luck, dies_at):
        self._luck, self._calls, self._version, self.played, self._sampled = luck, dies_at, 0, [], {}

    def _live(self):
        self._calls -= 1
        if self._calls == 0:
            raise Killed

    def start(self, step, drawing):
        self._sampled[step] = sampled_now(drawing, lambda tasks, attempt: self._scored(tasks, step, attempt))

    def collect(self, step):
        return self._sampled.pop(step)

    def settle(self):
        pass

    def _scored(self, tasks, step, attempt):
        self._live()
        numbers = occurrences([task.task_id for task in tasks], attempt)
        for task, number in zip(tasks, numbers, strict=True):
            seeds = tuple(derive_seed(SEED, step, task.task_id, sibling, 0, number) for sibling in range(GROUP))
            self.played.append((step, attempt, task.task_id, seeds))
        self._live()
        siblings = (Trajectory((), StopReason.ANSWERED),) * GROUP
        verdicts = [tuple(SegmentRewards(None, self._luck.choice((0.0, 1.0)), {}) for _ in siblings) for _ in tasks]
        return [
            ScoredGroup(TrajectoryGroup(task, siblings, None), rewards_G)
            for task, rewards_G in zip(tasks, verdicts, strict=True)
        ]

    def receive(self, scored):
        self._live()
        return scored

    def update(self, *, step, version):
        self._live()
        return LearnerUpdate({}, (), steps_taken=1)

    def push(self):
        self._live()
        self._version += 1
        return self._version


def live(disk, luck, save_every, dies_at=0):
    """One process of the run, until it is killed or done; what it played."""
    stages = Stages(luck, dies_at)

    def save(step, version):
        disk.next_step = step

    with contextlib.suppress(Killed):
        train(
            Schedule(disk.resume(), STEPS, save_every, eval_every=0, resample_attempts=2),
            tasks_for=lambda step, attempt: tasks_for_step(TASKS, SEED + ATTEMPT * attempt, step, PER_STEP),
            rollouts=stages,
            learners=stages,
            weights=stages,
            report=lambda step, scored, learned, metrics: disk.lines.__setitem__(step, len(scored)),
            save=save,
            evaluate=lambda step: False,
        )
    return stages.played


@given(
    luck=st.integers(0, 1000),
    save_every=st.integers(0, STEPS),
    kills=st.lists(st.integers(1, 30), max_size=4),
)
def test_however_often_a_run_is_killed_each_step_counts_once_with_its_own_tasks_and_seeds(luck, save_every, kills):
    undisturbed = Disk()
    straight = live(undisturbed, random.Random(0), save_every)
    own = {step: [play for play in straight if play[:2] == (step, 0)] for step in range(STEPS)}
    disk, dice, played = Disk(), random.Random(luck), []
    for dies_at in kills:
        played += live(disk, dice, save_every, dies_at)
    played += live(disk, dice, save_every)

    assert disk.lines == undisturbed.lines == dict.fromkeys(range(STEPS), PER_STEP)
    for step in range(STEPS):
        again = [play for play in played if play[:2] == (step, 0)]
        assert len(again) >= PER_STEP and again == own[step] * (len(again) // PER_STEP)
    of_call = {(step, attempt, name, tuple(seeds)) for step, attempt, name, seeds in (*straight, *played)}
    assert len({seeds for *_, seeds in of_call}) == len(of_call)  # no two calls share a seed, replacements included
