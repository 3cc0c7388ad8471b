"""How an evaluation is scored: benchmarks by their own metric, held-out tasks by the run's rewards."""

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

from actors.reward import RewardError
from envs.benchmarks.benchmark import Benchmark, Example, LoadedExamples, Prediction, RejectedExample
from rewards.answer import answer
from rewards.scoring import WeightedReward, score_group
from rl.config.errors import ConfigError
from rl.config.file import load_config
from rl.evaluation.predictions import EvaluationError
from rl.evaluation.scorers import benchmark_scorer, reward_scorer, reward_values
from rl.evaluation.suite import EvaluationSuite, identity_of, make_suite
from rl.trajectory import (
    AnswerKind,
    Completion,
    RetrievalCall,
    Segment,
    SegmentRewards,
    StopReason,
    TimeSpan,
    Trajectory,
    TrajectoryGroup,
    Turn,
    VideoTask,
)

pytestmark = pytest.mark.ray  # Ray is imported; no cluster is needed

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"


def example(name, answer="B"):
    return Example(VideoTask(name, f"/videos/{name}.mp4", "Which?", answer, AnswerKind.LETTER), group="kind")


def read(path, video_root):
    names = path.read_text().split()
    if "broken" in names:
        raise ValueError("line 3: expected a letter")
    return LoadedExamples(tuple(map(example, names)), (RejectedExample(7, "no such video"),))


def score(given, prediction):
    right = prediction is not None and prediction.answer == given.task.answer
    return {"accuracy": float(right), "unparsed": float(prediction is None or prediction.answer is None)}


LETTERS = Benchmark("letters", "by hand; over all examples", read, score, "accuracy", ("accuracy",))


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """`ask("q1 q2")`: the suite of a benchmark of our own with that annotation file."""
    module = ModuleType("benchmark_of_this_test")
    module.LETTERS = LETTERS
    monkeypatch.setitem(sys.modules, module.__name__, module)
    (tmp_path / "letters.txt").touch()

    def ask(annotations, *overrides):
        (tmp_path / "letters.txt").write_text(annotations)
        named = (f"evaluation.benchmark={module.__name__}:LETTERS", f"evaluation.path={tmp_path}/letters.txt")
        return make_suite(load_config([QUICKSTART], [*named, *overrides]), Console(quiet=True))

    return ask


def test_an_exam_is_a_benchmarks_examples_with_its_own_rules(ask):
    suite = ask("q1 q2")
    assert [one.task.task_id for one in suite.examples] == ["q1", "q2"]
    assert (suite.name, suite.headline, suite.over_groups) == ("letters", "accuracy", ("accuracy",))
    assert suite.rejected == (RejectedExample(7, "no such video"),)


@pytest.mark.parametrize(
    ("annotations", "overrides", "message"),
    [
        ("q1 broken", (), r"letters\.txt, read as letters: line 3: expected a letter"),
        ("", (), "no usable example of letters; the first of 1: no such video"),
        ("q1 q2 q1", (), "1 task ids stand for several examples, the first 'q1'"),
        ("q1", ("evaluation.benchmark=letterz",), "evaluation.benchmark: unknown benchmark 'letterz'"),
        ("q1", ("evaluation.benchmark=nowhere.at_all:X",), "evaluation.benchmark: "),
        ("q1", ("evaluation.path=absent.json",), "evaluation.path: no such file or folder: absent.json"),
        ("q1", ("evaluation.video_root=/no/videos",), "evaluation.video_root: no such folder: /no/videos"),
    ],
)
def test_a_benchmark_that_cannot_be_asked_is_a_mistake_with_its_key(ask, annotations, overrides, message):
    with pytest.raises(ConfigError, match=message):
        ask(annotations, *overrides)


CALL = RetrievalCall(TimeSpan(1, 9), 4, TimeSpan(1, 8), 4, 28, ("end",))


def rolled_out(text, stop=StopReason.ANSWERED, call=None):
    turn = Turn((1,), Completion((2, 3), (0.0, 0.0), "stop", 0), Segment.REASONING, call)
    return Trajectory((turn,), stop, text)


def test_predictions_are_parsed_from_trajectories_and_scored_by_the_benchmark(ask):
    suite = ask("q1 q2 q3")
    lost = Trajectory((), StopReason.VIDEO_ERROR, note="VideoError: cannot be opened")
    trajectories = [rolled_out("<answer>B</answer>", call=CALL), rolled_out("I do not know"), lost]
    groups = [TrajectoryGroup(suite.examples[i].task, (one,), None) for i, one in enumerate(trajectories)]
    right, unread, missing = benchmark_scorer(suite, list)([(0, groups[0]), (1, groups[1]), (2, groups[2])])
    strict, lenient = {"accuracy": 1.0, "unparsed": 0.0}, {"lenient/accuracy": 1.0, "lenient/unparsed": 0.0}
    assert (right.metrics, right.answer, right.windows_s) == (strict | lenient, "B", ((1, 8),))
    assert (right.task_id, right.index, right.group) == ("q1", 0, "kind")
    assert (unread.metrics["unparsed"], unread.answer, unread.missing) == (1.0, None, None)
    assert (missing.metrics["accuracy"], missing.missing) == (0.0, "VideoError: cannot be opened")


def test_a_metric_that_raises_is_an_error_that_names_benchmark_and_task(ask):
    def broken(given, prediction):
        raise KeyError("iou")

    suite = replace(ask("q1"), metric=broken)
    group = TrajectoryGroup(suite.examples[0].task, (rolled_out("B"),), None)
    with pytest.raises(EvaluationError, match="letters: its metric failed on task q1: KeyError"):
        benchmark_scorer(suite, list)([(0, group)])


class Rewards:
    """A reward pool in this process: the built-in answer reward, and one that fails on demand."""

    def score_all(self, groups, *, step):
        return [score_group(group, [self.answer]) for group in groups]

    answer = WeightedReward("answer", answer, Segment.REASONING)


class BrokenRewards(Rewards):
    answer = WeightedReward("answer", lambda task, trajectory: 1 / 0, Segment.REASONING)


def test_held_out_tasks_are_scored_by_rewards_and_a_lost_video_has_none():
    trajectories = [rolled_out("<answer>B</answer>", call=CALL), Trajectory((), StopReason.VIDEO_ERROR, note="gone")]
    groups = [TrajectoryGroup(SUITE.examples[i].task, (one,), None) for i, one in enumerate(trajectories)]
    right, lost = reward_scorer(SUITE, Rewards(), own(), list)([(0, groups[0]), (1, groups[1])])
    assert right.metrics == {
        **{"reward_reasoning": 1.0, "accuracy": 1.0, "term/answer": 1.0, "unparsed": 0.0},
        "lenient/accuracy": 1.0,
    }
    assert (right.answer, right.windows_s, right.failed) == ("B", ((1, 8),), None)
    assert (lost.metrics, lost.missing, lost.failed) == ({}, "gone", None)


def test_a_reward_that_fails_is_kept_with_its_cause_and_too_many_stop_the_evaluation():
    group = TrajectoryGroup(SUITE.examples[0].task, (rolled_out("<answer>B</answer>"),), None)
    (failed,) = reward_scorer(SUITE, BrokenRewards(), own("scoring.max_failed_share=0.5"), list)([(0, group)])
    assert failed.metrics == {} and failed.failed == "answer raised: ZeroDivisionError: division by zero"
    with pytest.raises(RewardError, match=r"1 of 2 examples could not be scored .*'answer' raised"):
        reward_scorer(SUITE, BrokenRewards(), own(), list)([(0, group)])  # scoring.max_failed_share=0.25


def test_rewards_become_metrics_under_the_names_of_a_training_run():
    rewards = SegmentRewards(0.25, 0.9, {"window": 0.25, "answer": 1.0, "format": 0.0})
    values = reward_values(rewards, Prediction(None), ["answer"])
    assert values == {
        **{"reward_sampling": 0.25, "reward_reasoning": 0.9, "accuracy": 1.0, "unparsed": 1.0},
        **{"term/window": 0.25, "term/answer": 1.0, "term/format": 0.0},
    }
    unannotated = reward_values(SegmentRewards(None, 0.9, {}), Prediction("B"), [])
    assert unannotated == {"reward_reasoning": 0.9, "unparsed": 0.0}  # no evidence, no value


@cache
def own(*overrides):
    return load_config([QUICKSTART], overrides)


SUITE = EvaluationSuite("held_out", "", "accuracy", (example("q1"), example("q2")), ())


@pytest.mark.parametrize(
    "override",
    [
        *("video.coarse.fps=2", "retrieval.max_calls=0", "prompt.system=x", "rollout.max_new_tokens=9"),
        *("policy.scenes.tau=0.3", "rewards.answer.weight=0.5", "data.quickstart.seed=4"),
    ],
)
def test_what_changes_the_results_changes_the_identity(override):
    assert identity_of(own(override), SUITE, "p") != identity_of(own(), SUITE, "p")


@pytest.mark.parametrize(
    "override",
    [
        *("rollout.num_workers=1", "evaluation.in_flight=1", "evaluation.limit=3", "cache_dir=elsewhere", "name=other"),
        *("rollout.engine.max_num_seqs=4", "trainer.steps=3", "learner.num_ranks=1", "placement.dashboard=false"),
    ],
)
def test_how_fast_and_where_it_runs_does_not(override):
    assert identity_of(own(override), SUITE, "p") == identity_of(own(), SUITE, "p")


def test_another_policy_other_examples_and_other_answers_are_another_identity():
    before = identity_of(own(), SUITE, "p")
    assert identity_of(own(), SUITE, "q") != before
    assert identity_of(own(), replace(SUITE, examples=SUITE.examples[:1]), "p") != before
    assert identity_of(own(), replace(SUITE, examples=(example("q1"), example("q2", "C"))), "p") != before


def test_a_benchmark_is_not_scored_by_rewards_so_they_do_not_matter():
    suite = replace(SUITE, metric=score)
    assert identity_of(own("rewards.answer.weight=0.5"), suite, "p") == identity_of(own(), suite, "p")
    assert identity_of(own(), suite, "p")["videos"] == "/videos"
