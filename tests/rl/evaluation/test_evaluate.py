"""An evaluation: what is finished is kept at once, a kill costs what was in the air, and metrics know no order."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.config.trainer import HELD_OUT, HELD_OUT_METRICS
from rl.evaluation.evaluate import (
    ExampleScore,
    missing_prediction,
    outcome_of,
    roll_out_remaining,
    summarise_outcomes,
)
from rl.evaluation.predictions import Outcome, PredictionFile, open_folder
from rl.tracking.held_out import EVALUATION_STEP, held_out_metrics
from rl.trajectory import (
    AnswerKind,
    Completion,
    RefusedCall,
    RetrievalCall,
    RewardFailure,
    ScoredGroup,
    Segment,
    SegmentRewards,
    StopReason,
    TimeSpan,
    Trajectory,
    TrajectoryGroup,
    Turn,
    VideoTask,
)

IDENTITY = {"benchmark": "letters", "policy": "0123"}
TASKS = [VideoTask(f"q{i}", f"/v{i}.mp4", "Which?", "B", AnswerKind.LETTER) for i in range(6)]
SAID = ["B", "A", "B", "", "B", "B"]  # by the scripted policy; q3 writes no answer
GROUPS = ["short", "short", "short", "short", "long", "long"]


class ScriptedPool:
    """Rolls tasks out with answers from a script and hands over two at a time, the later one first; can die midway."""

    def __init__(self, dies_after=None):
        self.rolled_out, self.dies_after = [], dies_after

    def roll_out(self, tasks, *, step, greedily, in_flight):
        assert (step, greedily, in_flight) == (EVALUATION_STEP, True, 3)
        for place in range(0, len(tasks), 2):
            if self.dies_after is not None and place >= self.dies_after:
                raise RuntimeError("a worker died")
            pair = [(place + i, self.group(task)) for i, task in enumerate(tasks[place : place + 2])]
            self.rolled_out += [group.task.task_id for _, group in pair]
            yield pair[::-1]

    def group(self, task):
        text = SAID[int(task.task_id[1:])]
        turn = Turn((1,), Completion((2, 3), (0.0, 0.0), "stop", 0), Segment.REASONING)
        return TrajectoryGroup(task, (Trajectory((turn,), StopReason.ANSWERED, text),), None)


def score(finished):
    outcomes = []
    for place, group in finished:
        text = group.trajectories_G[0].answer_text
        values = {"accuracy": float(text == "B"), "unparsed": float(not text)}
        scored = ExampleScore(values, text or None, ())
        outcomes.append(outcome_of(group.task.task_id, place, GROUPS[place], group.trajectories_G[0], scored))
    return outcomes


def evaluate(folder, pool=None, tasks=TASKS):
    """As `dynframe eval` does it, with a scripted policy: what metrics.json would say, without the clock."""
    pool = pool or ScriptedPool()
    with open_folder(folder, IDENTITY) as file:
        reported = []
        roll_out_remaining(tasks, rollouts=pool, scorer=score, file=file, in_flight=3, report=reported.append)
        summary = summarise_outcomes([file.outcomes[task.task_id] for task in tasks], over_groups=["accuracy"])
    assert summary.pop("seconds") >= 0 and summary.pop("tasks_per_s", 1) != 0
    return json.dumps(summary)


def test_a_whole_evaluation_by_hand(tmp_path):
    summary = json.loads(evaluate(tmp_path / "eval"))
    # short: B A B and nothing -> 2 of 4; long: 2 of 2; the macro average over both groups
    assert summary["metrics"]["accuracy"]["value"] == pytest.approx((0.5 + 1.0) / 2)
    wilson = {"low": pytest.approx(0.03005, abs=1e-5), "high": pytest.approx(0.56350, abs=1e-5)}
    assert summary["metrics"]["unparsed"] == {"value": pytest.approx(1 / 6), **wilson, "n": 6, "too_few": True}
    assert summary["groups"]["long"]["accuracy"].items() >= {"value": 1.0, "n": 2, "too_few": True}.items()
    assert summary["counts"] == {
        **{"examples": 6, "missing": 0, "video_errors": 0},
        **{"truncated": 0, "unparsed": 1, "failed": 0},
    }
    lines = [json.loads(line) for line in (tmp_path / "eval" / "predictions.jsonl").read_text().splitlines()]
    assert [line["task_id"] for line in lines] == ["q1", "q0", "q3", "q2", "q5", "q4"]  # as they finished
    assert (lines[1]["answer"], lines[1]["text"], lines[1]["stop"], lines[1]["group"]) == (
        "B",
        "B",
        "answered",
        "short",
    )


def test_wherever_it_is_killed_the_same_metrics_come_out(tmp_path):
    whole = evaluate(tmp_path / "whole")
    content = (tmp_path / "whole" / "predictions.jsonl").read_bytes()
    assert content.count(b"\n") == 6
    for end in range(0, len(content) + 1, 7):  # 7 bytes on: every line is also cut somewhere inside
        check_continued(tmp_path / f"cut{end}", content[:end], whole)


def test_killed_after_any_line_only_what_is_missing_is_rolled_out(tmp_path):
    whole = evaluate(tmp_path / "whole")
    lines = (tmp_path / "whole" / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    for kept in range(7):
        rolled_out = check_continued(tmp_path / f"after{kept}", b"".join(lines[:kept]), whole)
        assert len(rolled_out) == 6 - kept
        rolled_out = check_continued(tmp_path / f"torn{kept}", b"".join(lines[:kept]) + lines[0][:-1], whole)
        assert len(rolled_out) == 6 - kept  # a line without its end is no line


def check_continued(folder, content, whole):
    open_folder(folder, IDENTITY)
    (folder / "predictions.jsonl").write_bytes(content)
    pool = ScriptedPool()
    assert evaluate(folder, pool) == whole
    assert len((folder / "predictions.jsonl").read_text().splitlines()) == 6
    return pool.rolled_out


def test_what_was_finished_when_a_worker_died_is_there_when_the_command_is_given_again(tmp_path):
    with pytest.raises(RuntimeError, match="a worker died"):
        evaluate(tmp_path / "eval", ScriptedPool(dies_after=4))
    again = ScriptedPool()
    assert evaluate(tmp_path / "eval", again) == evaluate(tmp_path / "whole")
    assert again.rolled_out == ["q4", "q5"]
    lines = [json.loads(line) for line in (tmp_path / "eval" / "predictions.jsonl").read_text().splitlines()]
    assert [line["session"] for line in lines] == [0, 0, 0, 0, 1, 1]


def test_a_finished_evaluation_plays_nothing(tmp_path):
    evaluate(tmp_path / "eval")
    again = ScriptedPool()
    evaluate(tmp_path / "eval", again)
    assert again.rolled_out == []


def test_more_examples_later_keep_what_is_done(tmp_path):
    evaluate(tmp_path / "eval", tasks=TASKS[:2])
    more = ScriptedPool()
    assert evaluate(tmp_path / "eval", more) == evaluate(tmp_path / "whole")
    assert more.rolled_out == ["q2", "q3", "q4", "q5"]


def outcome(i, **changed):
    return replace(Outcome(f"q{i}", i, "", {"iou": i / 4}, "B", (), "B", "answered"), **changed)


@given(st.permutations(range(5)))
@settings(max_examples=20, deadline=None)
def test_metrics_do_not_depend_on_the_order_in_which_examples_finished(order):
    outcomes = [outcome(i, elapsed_s=1.0) for i in range(5)]
    assert summarise_outcomes([outcomes[i] for i in order]) == summarise_outcomes(outcomes)


def test_a_metric_that_does_not_apply_to_an_example_is_averaged_over_the_others():
    outcomes = [outcome(0), outcome(2, metrics={}), outcome(4)]
    assert summarise_outcomes(outcomes)["metrics"]["iou"].items() >= {"value": 0.5, "n": 2, "too_few": True}.items()
    assert summarise_outcomes([outcome(1, metrics={})])["metrics"] == {}


def test_examples_without_a_prediction_are_counted_and_stay_out_of_what_the_policy_did():
    lost = outcome(1, metrics={"iou": 0.0}, missing="v.mp4: cannot be opened", stop="video_error", answer=None, text="")
    looked = outcome(4, calls=({"granted_s": [0, 1], "frames": 6}, {"refused": "limit"}), frames=6, sampled_tokens=20)
    failed = outcome(2, metrics={}, failed="answer raised: KeyError")
    summary = summarise_outcomes([lost, looked, failed])
    assert summary["counts"]["missing"] == summary["counts"]["video_errors"] == 1
    assert summary["counts"]["failed"] == 1 and summary["counts"]["examples"] == 3
    assert summary["metrics"]["iou"]["value"] == 0.5  # the lost one is worth what its benchmark says: 0
    assert summary["behaviour"]["frames"]["value"] == 3.0 and summary["behaviour"]["granted_calls"]["n"] == 2
    assert summary["behaviour"]["granted_calls"]["value"] == summary["behaviour"]["refused_calls"]["value"] == 0.5


def test_seconds_are_those_of_play_over_all_goes():
    outcomes = [outcome(i, session=i // 2, elapsed_s=float(i + 1)) for i in range(3)]  # 2 s, then 3 s
    summary = summarise_outcomes(outcomes)
    assert (summary["seconds"], summary["tasks_per_s"]) == (5.0, 0.6)
    assert summarise_outcomes([outcome(0)])["tasks_per_s"] is None


def test_what_could_not_be_read_or_scored_is_tried_again(tmp_path):
    path = tmp_path / "predictions.jsonl"
    with PredictionFile(path) as file:
        for i in range(6):
            file.append(outcome(i))
        file.append(outcome(1, missing="the disk was away", stop="video_error"))
        file.append(outcome(2, failed="answer timeout: no result within 30 s"))
    again = ScriptedPool()
    with PredictionFile(path) as file:
        roll_out_remaining(TASKS, rollouts=again, scorer=score, file=file, in_flight=3, report=lambda _: None)
    assert again.rolled_out == ["q1", "q2"]


CALL = RetrievalCall(TimeSpan(1, 9), 4, TimeSpan(1, 8), 4, 28, ("end",))


def test_an_outcome_says_what_was_asked_granted_and_written():
    looked = Turn((1,), Completion((2,) * 5, (0.0,) * 5, "stop", 0), Segment.SAMPLING, CALL)
    refused = Turn((1,), Completion((2,) * 3, (0.0,) * 3, "stop", 0), Segment.SAMPLING, RefusedCall("reversed"))
    trajectory = Trajectory((looked, refused), StopReason.TRUNCATED, "<span>1 - 9</span>")
    made = outcome_of("q", 0, "", trajectory, ExampleScore({"iou": 0.5}, None, ((1.0, 8.0),)))
    assert (made.frames, made.sampled_tokens, made.stop, made.missing) == (28, 8, "truncated", None)
    granted = {"asked_s": [1, 9], "asked_fps": 4, "granted_s": [1, 8], "granted_fps": 4, "frames": 28}
    assert made.calls == (granted, {"refused": "reversed"})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_that_is_no_number_is_an_error_that_names_task_and_metric(value):
    with pytest.raises(ValueError, match="task q: the metric 'iou' came out as"):
        outcome_of("q", 0, "", Trajectory((), StopReason.ANSWERED), ExampleScore({"iou": value}, None, ()))


def test_a_policy_that_was_never_asked_has_no_prediction():
    assert missing_prediction(Trajectory((), StopReason.VIDEO_ERROR, note="gone")) == "gone"
    assert missing_prediction(Trajectory((), StopReason.TRUNCATED, note="the context is full")) == "the context is full"
    assert missing_prediction(ScriptedPool().group(TASKS[0]).trajectories_G[0]) is None


def test_held_out_metrics_of_a_training_run_are_those_a_best_checkpoint_can_be_chosen_by():
    trajectory = ScriptedPool().group(TASKS[0]).trajectories_G[0]
    group = TrajectoryGroup(TASKS[0], (trajectory,), None)
    scored = [
        ScoredGroup(group, (SegmentRewards(0.5, 1.0, {"answer": 1.0, "window": 0.5}),)),
        ScoredGroup(group, (SegmentRewards(None, 0.0, {"answer": 0.0}),)),
        ScoredGroup(group, (RewardFailure("answer", "raised", ""),)),
    ]
    metrics = held_out_metrics(scored, answer_terms=["answer"])
    chosen_by = {HELD_OUT + name for name in (*HELD_OUT_METRICS, "term/answer", "term/window")}
    assert metrics.keys() == chosen_by | {"held_out/tasks"}
    assert metrics["held_out/reward_sampling"] == 0.5  # of the only annotated task with rewards
    assert metrics["held_out/accuracy"] == 0.5 and metrics["held_out/failed"] == 1.0
