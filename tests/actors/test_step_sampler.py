"""Steps sampled: each group is scored as soon as it is rolled out, replacements are drawn in the background, and the
order in which groups finish changes nothing."""

from types import SimpleNamespace

import pytest

from rl.trajectory import (
    AnswerKind,
    ScoredGroup,
    SegmentRewards,
    StopReason,
    Trajectory,
    TrajectoryGroup,
    VideoTask,
)

pytestmark = pytest.mark.ray  # Ray is imported; no cluster is needed


def tasks(*names):
    return [VideoTask(name, "v.mp4", "?", "A", AnswerKind.LETTER) for name in names]


class Rollouts:
    """One group finishes with every `advance`, in the order in which tasks are named in `finish`."""

    def __init__(self, diary, finish=""):
        self.diary, self._finish, self._open, self.cancelled = diary, finish, [], []
        self.needs_push = False
        self.workers = SimpleNamespace(poll=lambda: diary.append("poll"))

    def start(self, started, *, step, attempt, max_lag):
        batch = Batch(len(started), max_lag)
        self.diary.append(f"roll out {step}.{attempt}: {' '.join(task.task_id for task in started)}")
        self._open += [(task, index, batch) for index, task in enumerate(started)]
        return batch

    def wake(self, listener):
        self._listener = listener
        listener.set()

    def advance(self, *, waited_s):
        self._listener.set()  # there is always more to do
        self._open.sort(key=lambda sent: self._finish.find(sent[0].task_id))
        if self._open:
            task, index, batch = self._open.pop(0)
            batch.unfinished -= 1
            batch.finished.append(
                (index, TrajectoryGroup(task, (Trajectory((), StopReason.ANSWERED),) * 2, coarse_frames=None))
            )

    def cancel(self, batch):
        self._open = [sent for sent in self._open if sent[2] is not batch]
        self.cancelled.append(batch)

    def check(self):
        self.diary.append("check")

    def require_weights(self):
        from actors.rollout_group import RolloutError

        if self.needs_push:
            raise RolloutError("no worker holds the current weights")


class Batch:
    def __init__(self, unfinished, max_lag):
        self.unfinished, self.max_lag, self.finished = unfinished, max_lag, []

    def take(self):
        taken, self.finished = self.finished, []
        return taken


class Rewards:
    """Scores what it has been given at the next `advance`; tasks named 'same…' give equal rewards."""

    def __init__(self, diary):
        self.diary, self._waiting = diary, []

    def wake(self, listener):
        pass

    def submit(self, group, *, step):
        self.diary.append(f"score {group.task.task_id}")
        self._waiting.append(SimpleNamespace(group=group, result=None))
        return self._waiting[-1]

    def advance(self):
        for request in self._waiting:
            last = 0.0 if request.group.task.task_id.startswith("same") else 1.0
            rewards = (SegmentRewards(None, 0.0, {}), SegmentRewards(None, last, {}))
            request.result = ScoredGroup(request.group, rewards)
        self._waiting = []

    def forget(self):
        self._waiting = []

    def restore_lost(self):
        pass


class Setting:
    def __init__(self, draws, finish="", **options):
        from actors.step_sampler import StepSampler

        self.diary, self._draws = [], draws
        self.rollouts, self.rewards = Rollouts(self.diary, finish), Rewards(self.diary)
        self.accepted = []
        accept = lambda step, scored: self.accepted.append((step, [one.group.task.task_id for one in scored]))  # noqa: E731
        self.sampler = StepSampler(self.rollouts, self.rewards, accept=accept, **options)

    def start(self, step, resample_attempts=1):
        from rl.trainer import Schedule, draw

        schedule = Schedule(0, 9, 0, 0, resample_attempts=resample_attempts)
        self.sampler.start(step, draw(schedule, step, lambda _, attempt: tasks(*self._draws[attempt].split())))

    def collected(self, step):
        return [one.group.task.task_id for one in self.sampler.collect(step).groups]


@pytest.mark.parametrize("finish", ["abc", "cab", "bca"])
def test_groups_are_in_the_order_of_their_tasks_however_they_finish(finish):
    setting = Setting(["a b c"], finish)
    setting.start(0)
    assert setting.collected(0) == ["a", "b", "c"] and setting.accepted == [(0, ["a", "b", "c"])]


def test_a_group_is_scored_while_others_are_still_rolled_out():
    setting = Setting(["a b"])
    setting.start(0)
    setting.sampler.poll()
    assert setting.diary == ["roll out 0.0: a b", "score a"] and setting.sampler.sampled == {}


def test_replacements_are_drawn_in_the_background_and_the_step_is_there_when_it_is_asked_for():
    setting = Setting(["same-1 good-1", "good-2 good-3"])
    setting.start(5)
    for _ in range(5):
        setting.sampler.poll()
    assert list(setting.sampler.sampled) == [5] and "roll out 5.1: good-2" in setting.diary
    assert setting.collected(5) == ["good-1", "good-2"]
    assert setting.accepted == [(5, ["same-1", "good-1"]), (5, ["good-2"])] and setting.sampler.sampled == {}


def test_a_stop_is_asked_for_although_the_step_is_there():
    setting = Setting(["a"], settles=True)
    setting.start(0)
    setting.sampler.settle()
    assert "check" not in setting.diary  # the learners are ahead of what was reported
    setting.sampler.collect(0)
    assert setting.diary[-1] == "check"


@pytest.mark.parametrize(("settles", "sampled"), [(True, [0, 1]), (False, [])])
def test_only_a_run_whose_versions_are_fixed_waits_for_its_steps_before_a_push(settles, sampled):
    setting = Setting(["a b"], settles=settles, max_lag=1)
    setting.start(0)
    setting.start(1)
    setting.sampler.settle()
    assert sorted(setting.sampler.sampled) == sampled


def test_a_push_is_not_held_up_by_groups_that_no_engine_can_go_on_with():
    setting = Setting(["a"], settles=True, max_lag=1)
    setting.start(0)
    setting.rollouts.needs_push = True
    setting.sampler.settle()
    assert setting.sampler.sampled == {}


def test_a_step_that_nobody_can_go_on_with_is_an_error_where_learners_could_have_given_their_weights():
    from actors.rollout_group import RolloutError

    setting = Setting(["a b"])
    setting.start(0)
    setting.rollouts.needs_push = True
    with pytest.raises(RolloutError, match="no worker holds the current weights"):
        setting.sampler.collect(0)


def test_steps_that_a_checkpoint_brought_along_are_not_sampled_again_and_others_are_given_up():
    setting = Setting(["a b"])
    setting.start(3)
    setting.sampler.poll()
    brought = Setting(["x"])
    brought.start(7)
    ahead = {7: brought.sampler.collect(7)}
    setting.sampler.reset(ahead)
    assert len(setting.rollouts.cancelled) == 1
    setting.start(7)
    assert setting.collected(7) == ["x"]
    assert [line for line in setting.diary if line.startswith("roll out")] == ["roll out 3.0: a b"]


def test_workers_are_checked_on_about_once_a_second_while_nothing_is_under_way():
    setting = Setting(["a"])
    for _ in range(50):
        setting.sampler.poll()
    assert setting.diary == ["poll"]
