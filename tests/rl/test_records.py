"""Records are what a person reads of a trajectory; evaluation is what a table says of many."""

import json
import math

import pytest

from rewards.golden import golden_group
from rewards.scoring import WeightedReward, score_group
from rewards.temporal_iou import temporal_iou
from rl.evaluate import held_out_metrics
from rl.records import records, write_records
from rl.trajectory import RewardFailure, ScoredGroup, Segment, SegmentRewards


def scored_golden():
    return score_group(golden_group(), [WeightedReward("window", temporal_iou, Segment.SAMPLING)])


def test_a_record_shows_question_window_asked_and_granted_text_and_verdict():
    first, *_ = records([scored_golden()])
    group = golden_group()
    assert first["task"]["question"] == group.task.question and first["text"] == group.trajectories_G[0].answer_text
    call = next(turn["call"] for turn in first["turns"] if turn["call"])
    assert {"asked_s", "granted_s", "granted_fps", "frames", "clamped"} <= call.keys()
    assert first["rewards"]["terms"] == {"window": 1.0}


def test_a_failed_reward_is_shown_as_failed():
    group = golden_group()
    failed = ScoredGroup(group, (RewardFailure("answer", "timeout", "30 s"),) * len(group.trajectories_G))
    assert next(records([failed]))["rewards"] == {"failed": {"term": "answer", "cause": "timeout", "detail": "30 s"}}


def test_records_are_json_lines_up_to_a_limit(tmp_path):
    path = write_records(tmp_path / "trajectories", 7, [scored_golden()], limit=2)
    assert path.name == "step_000007.jsonl"
    assert [json.loads(line)["sibling"] for line in path.read_text().splitlines()] == [0, 1]


def test_held_out_means_leave_failures_out_and_count_them():
    group = golden_group()
    good, bad = SegmentRewards(0.8, 1.0, {"answer": 1.0}), SegmentRewards(0.4, 0.0, {"answer": 0.0})
    verdicts = (good, bad, RewardFailure("answer", "raised", ""), bad)
    metrics = held_out_metrics([ScoredGroup(group, verdicts)], answer_terms=["answer"])
    assert metrics["held_out/reward_sampling"] == pytest.approx((0.8 + 0.4 + 0.4) / 3)
    assert metrics["held_out/accuracy"] == pytest.approx(1 / 3)
    assert (metrics["held_out/tasks"], metrics["held_out/failed"]) == (4.0, 1.0)


def test_accuracy_without_an_answer_reward_is_unknown_not_zero():
    group = golden_group()
    verdicts = (SegmentRewards(None, 1.0, {}),) * len(group.trajectories_G)
    metrics = held_out_metrics([ScoredGroup(group, verdicts)], answer_terms=[])
    assert math.isnan(metrics["held_out/accuracy"]) and math.isnan(metrics["held_out/reward_sampling"])
