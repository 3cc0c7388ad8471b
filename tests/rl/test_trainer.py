"""The loop: stages in order, versions forward, saves and evaluations when due, zero-variance groups replaced."""

import pytest

from rl.trainer import Schedule, is_due, is_zero_variance, train
from rl.trajectory import (
    AnswerKind,
    LearnerUpdate,
    RewardFailure,
    ScoredGroup,
    SegmentRewards,
    StopReason,
    Trajectory,
    TrajectoryGroup,
    VideoTask,
)
from tests.fakes import sampled_now


def task(name):
    return VideoTask(name, "clip.mp4", "?", "A", AnswerKind.LETTER)


def scored(rewards, name="t"):
    siblings = tuple(Trajectory((), StopReason.ANSWERED) for _ in rewards)
    verdicts = tuple(SegmentRewards(s, r, {}) for s, r in rewards)
    return ScoredGroup(TrajectoryGroup(task(name), siblings, None), verdicts)


class Stages:
    """All stages, writing down what is asked of them; groups of tasks named 'same…' are degenerate."""

    def __init__(self, idle=()):
        self.idle = idle  # steps in which nothing can be learned
        self.diary, self.version, self.learned, self.attempts, self._sampled = [], -1, [], [], {}
        self.versions = {}  # by step: of the weights that sampled it, and of those that learned from it

    def start(self, step, drawing):
        self.diary.append(f"start {step}")
        self.versions[step] = [self.version]
        self._sampled[step] = sampled_now(drawing, self._scored)

    def _scored(self, tasks, attempt):
        self.attempts.append(attempt)
        return [scored([(0.0, 0.0), (0.0, 0.0 if g.task_id.startswith("same") else 1.0)], g.task_id) for g in tasks]

    def collect(self, step):
        self.diary.append(f"collect {step}")
        return self._sampled.pop(step)

    def settle(self):
        self.diary.append("settle")

    def receive(self, scored_groups):
        """Those of a task that is lost on its way are sampled again."""
        self.diary.append("receive")
        return [scored([(1.0, 1.0)], "again") if g.group.task.task_id == "lost" else g for g in scored_groups]

    def update(self, *, step, version):
        self.diary.append("update")
        self.versions[step].append(version)
        return LearnerUpdate({"loss/total": 0.5}, logprobs_PG=(), steps_taken=int(step not in self.idle))

    def push(self):
        self.version += 1
        self.diary.append(f"push {self.version}")
        return self.version


def run(schedule, tasks_for=lambda step, attempt: [task("a"), task("b")], best_at=(), idle=()):
    stages, reports = Stages(idle), []

    def evaluate(step):
        stages.diary.append(f"evaluate {step}")
        return step in best_at

    def report(step, groups, learned, metrics):
        stages.learned.append([one.group.task.task_id for one in groups])
        reports.append((step, {**learned.metrics, **metrics}))

    train(
        schedule,
        tasks_for=tasks_for,
        rollouts=stages,
        learners=stages,
        weights=stages,
        report=report,
        save=lambda step, version: stages.diary.append(f"save {step} v{version}"),
        evaluate=evaluate,
    )
    return stages, reports


def test_what_is_reported_is_what_arrived_at_the_learners():
    stages, _ = run(Schedule(0, 1, 0, 0), lambda step, attempt: [task("lost"), task("b")])
    assert stages.learned == [["again", "b"]]


def test_weights_that_have_not_changed_are_not_pushed():
    stages, reports = run(Schedule(first_step=0, steps=3, save_every=0, eval_every=0), idle=(1,))
    pushes = [line for line in stages.diary if line.startswith("push")]
    assert pushes == ["push 0", "push 1", "push 2"] and stages.diary[-1] == "save 3 v2"
    assert [metrics["policy/version"] for _, metrics in reports] == [1, 1, 2]


def test_one_step_is_rollouts_update_push_and_engines_have_weights_before_the_first():
    stages, reports = run(Schedule(first_step=0, steps=1, save_every=0, eval_every=0, evaluate_first=True))
    assert stages.diary == [
        *(
            "push 0",
            "evaluate 0",
            "start 0",
            "collect 0",
            "receive",
            "update",
            "settle",
            "push 1",
            "evaluate 1",
            "save 1 v1",
        )
    ]
    ((step, metrics),) = reports
    assert step == 0 and metrics["policy/version"] == 1 and metrics["loss/total"] == 0.5
    assert {"seconds/wait", "seconds/update", "seconds/sync", "seconds/step"} <= metrics.keys()
    assert (metrics["seconds/rollout"], metrics["seconds/reward"]) == (2.0, 1.0)  # as the step was sampled


def test_with_a_lag_of_one_the_next_step_is_sampled_while_this_one_is_learned_from():
    stages, _ = run(Schedule(first_step=0, steps=3, save_every=1, eval_every=0, max_lag=1))
    assert stages.diary == [
        *("push 0", "start 0", "start 1"),
        *("collect 0", "receive", "update", "settle", "push 1", "start 2", "save 1 v1"),
        *("collect 1", "receive", "update", "settle", "push 2", "save 2 v2"),
        *("collect 2", "receive", "update", "settle", "push 3", "evaluate 3", "save 3 v3"),
    ]


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("lag", [0, 1, 2, 9])
def test_the_version_that_samples_a_step_follows_from_the_step_alone(first, lag):
    stages, _ = run(Schedule(first, steps=6, save_every=0, eval_every=2, max_lag=lag))
    assert stages.versions == {step: [max(0, step - first - lag), step - first] for step in range(first, 6)}


def test_a_step_without_an_update_makes_nothing_staler():
    stages, _ = run(Schedule(0, steps=5, save_every=0, eval_every=0, max_lag=1), idle=(1, 2))
    assert stages.versions == {0: [0, 0], 1: [0, 1], 2: [1, 1], 3: [1, 1], 4: [1, 2]}


def test_a_resumed_run_goes_on_where_it_stopped_and_does_not_evaluate_its_start_again():
    stages, reports = run(Schedule(first_step=2, steps=4, save_every=0, eval_every=0))
    assert [step for step, _ in reports] == [2, 3]
    assert "evaluate 0" not in stages.diary and "evaluate 2" not in stages.diary


def test_a_run_stopped_before_it_was_evaluated_makes_up_for_it_and_keeps_it_if_it_is_the_best():
    stages, _ = run(Schedule(first_step=2, steps=3, save_every=0, eval_every=2, evaluate_first=True), best_at=(2,))
    assert stages.diary[:3] == ["push 0", "evaluate 2", "save 2 v0"]


def test_a_finished_run_resumed_does_nothing_but_hand_out_weights():
    stages, reports = run(Schedule(first_step=3, steps=3, save_every=1, eval_every=1))
    assert reports == [] and stages.diary == ["push 0"]


def test_a_policy_that_is_the_best_so_far_is_saved_although_no_checkpoint_is_due():
    stages = run(Schedule(first_step=0, steps=3, save_every=0, eval_every=1, evaluate_first=True), best_at=(2,))[0]
    assert [entry for entry in stages.diary if entry.startswith(("evaluate", "save"))] == [
        *("evaluate 0", "evaluate 1", "evaluate 2", "save 2 v2", "evaluate 3", "save 3 v3")
    ]  # the start is not saved: that policy is there already


@pytest.mark.parametrize(("done", "every", "due"), [(1, 0, False), (5, 0, True), (2, 2, True), (3, 2, False)])
def test_something_is_due_every_so_often_and_always_at_the_end(done, every, due):
    assert is_due(done, every, total=5) is due


def test_zero_variance_groups_are_replaced_a_bounded_number_of_times():
    def tasks_for(step, attempt):
        return [[task("same-1"), task("good-1")], [task("good-2"), task("good-3")]][attempt]

    stages, reports = run(Schedule(0, 1, 0, 0, resample_attempts=1), tasks_for)
    assert stages.learned == [["good-1", "good-2"]]
    assert stages.attempts == [0, 1]  # a task drawn again is played with other seeds
    assert reports[0][1]["rollout/resampled_groups"] == 1


def test_when_replacements_are_degenerate_too_the_batch_keeps_its_size():
    stages, _ = run(Schedule(0, 1, 0, 0, resample_attempts=1), lambda step, attempt: [task("same"), task("same")])
    assert len(stages.learned[0]) == 2


def test_a_group_differs_if_one_role_differs_and_failures_do_not_count():
    assert is_zero_variance(scored([(0.5, 1.0), (0.5, 1.0)]))
    assert not is_zero_variance(scored([(0.5, 1.0), (0.6, 1.0)]))
    assert not is_zero_variance(scored([(0.5, 1.0), (0.5, 0.0)]))
    failed = ScoredGroup(
        scored([(0.5, 1.0), (0.5, 1.0)]).group, (SegmentRewards(0.5, 1.0, {}), RewardFailure("x", "raised", ""))
    )
    assert is_zero_variance(failed)
