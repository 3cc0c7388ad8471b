"""Records are what a person reads of a trajectory, token by token; evaluation is what a table says of many."""

import json
import math
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from rewards.golden import golden_group
from rewards.scoring import WeightedReward, score_group
from rewards.temporal_iou import temporal_iou
from rl.algorithm.advantages import NOT_LEARNED, Credit, token_advantages
from rl.algorithm.batch import learned_credit
from rl.algorithm.segments import flatten
from rl.config.algorithm import AdvantageConfig
from rl.tracking.held_out import held_out_metrics
from rl.tracking.records import records, write_records, write_step
from rl.trajectory import Completion, RewardFailure, ScoredGroup, Segment, SegmentRewards, StopReason
from tests.envs.setting import make_processor


def scored_golden():
    return score_group(golden_group(), [WeightedReward("window", temporal_iou, Segment.SAMPLING)])


def ids(token_ids):
    return [str(token) for token in token_ids]


def test_a_record_shows_question_window_asked_and_granted_text_and_rewards():
    first, *_ = records([scored_golden()], ids)
    group = golden_group()
    assert first["task"]["question"] == group.task.question and first["text"] == group.trajectories_G[0].answer_text
    call = next(turn["call"] for turn in first["turns"] if turn["call"])
    assert {"asked_s", "granted_s", "granted_fps", "frames", "clamped"} <= call.keys()
    assert first["rewards"]["terms"] == {"window": 1.0}
    assert first["duration_s"] == 8.0


def test_a_failed_reward_is_shown_as_failed():
    group = golden_group()
    failed = ScoredGroup(group, (RewardFailure("answer", "timeout", "30 s"),) * len(group.trajectories_G))
    assert next(records([failed], ids))["rewards"] == {
        "failed": {"term": "answer", "cause": "timeout", "detail": "30 s"}
    }


def test_siblings_share_the_number_of_their_group_even_where_a_task_is_rolled_out_twice():
    places = [(record["group"], record["sibling"]) for record in records([scored_golden(), scored_golden()], ids)]
    assert places == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)]


def test_every_sampled_token_is_shown_with_both_log_probs_and_the_credit_of_its_turn(trajectory, scored_group):
    scored = scored_group([trajectory((2, 1), 1), trajectory(0, 2)], [(1.0, 0.0), (0.0, 1.0)])
    learner_S = np.array(
        [-0.11, -0.22, -0.33, -0.1000049], np.float32
    )  # the learner's, call after call, then the answer
    credit_G = (Credit(sampling=1.5, reasoning=-0.5), Credit(0.0, 0.123456))

    first, second = records([scored], ids, credit_PG=[credit_G], logprobs_PG=[(learner_S, None)])

    # context 10, call 11 12, context 13, call 14, context 15, answer 16
    assert [turn["tokens"] for turn in first["turns"]] == [["11", "12"], ["14"], ["16"]]
    assert [turn["logprobs"] for turn in first["turns"]] == [[-0.1, -0.2], [-0.1], [-0.1]]  # the engine's
    assert [turn["learner_logprobs"] for turn in first["turns"]] == [[-0.11, -0.22], [-0.33], [-0.1]]
    assert [turn["advantage"] for turn in first["turns"]] == [1.5, 1.5, -0.5]
    (only,) = second["turns"]  # learned from after the policy had moved
    assert (only["learner_logprobs"], only["advantage"]) == (None, 0.12346)


def test_advantages_are_those_of_the_tokens_and_null_where_nothing_is_learned(trajectory, scored_group):
    truncated, unreadable = trajectory(2, 2, stop=StopReason.TRUNCATED), replace(trajectory(), turns=())
    failed = RewardFailure("answer", "raised", "KeyError")
    siblings = [trajectory(1, 2), trajectory(0, 2), trajectory(1, 1), truncated, unreadable]
    scored = scored_group(siblings, [(0.9, 0.2), (0.0, 1.0), failed, (0.3, 0.0), failed])
    credit_G = learned_credit(scored)

    shown = list(records([scored], ids, credit_PG=[credit_G], logprobs_PG=[(np.zeros(3, np.float32),) * 5]))

    for record, sibling, credit in zip(shown, siblings, credit_G, strict=True):
        flat = flatten(sibling, None)
        advantages_T, mask_T = token_advantages(credit, flat.segment_ids, flat.turn_ids)
        sampled = [i for i, segment in enumerate(flat.segment_ids) if segment != Segment.CONTEXT]
        expected = [round(advantages_T[i], 5) if mask_T[i] else None for i in sampled]
        assert [turn["advantage"] for turn in record["turns"] for _ in turn["tokens"]] == expected
    learned = [[turn["learner_logprobs"] is not None for turn in record["turns"]] for record in shown]
    assert learned == [[True, True], [True], [False, False], [False, False], []]


def test_every_call_shows_its_own_reward_and_credit(trajectory, scored_group):
    better_first, better_then = (SegmentRewards(0.5, 1.0, {}, calls) for calls in ((1.0, 0.0), (0.0, 1.0)))
    scored = scored_group([trajectory((1, 1), 1)] * 2, [better_first, better_then])
    credit_PG = [learned_credit(scored, AdvantageConfig(calls="each", scale="none"))]

    first, _ = records([scored], ids, credit_PG=credit_PG)

    assert [turn["advantage"] for turn in first["turns"]] == [0.5, -0.5, 0.0]
    assert first["rewards"]["calls"] == [1.0, 0.0]


def test_of_a_task_without_evidence_only_the_answer_may_be_learned(trajectory, scored_group):
    scored = scored_group([trajectory(1, 1), trajectory(1, 1)], [(None, 1.0), (None, 0.0)])
    credit_PG = [learned_credit(scored, AdvantageConfig(unannotated="mask"))]
    seen_S = np.array([math.nan, -0.2], np.float32)
    call, answer = next(records([scored], ids, credit_PG=credit_PG, logprobs_PG=[(seen_S, seen_S)]))["turns"]
    assert (call["advantage"], call["learner_logprobs"]) == (None, None)
    assert (answer["advantage"], answer["learner_logprobs"]) == (pytest.approx(1.0, abs=1e-3), [-0.2])


def test_an_evaluation_has_tokens_and_log_probs_and_nothing_learned():
    for record in records([scored_golden()], ids):
        assert all(len(turn["tokens"]) == len(turn["logprobs"]) == turn["sampled_tokens"] for turn in record["turns"])
        assert all(turn["learner_logprobs"] is turn["advantage"] is None for turn in record["turns"])


def test_tokens_are_the_text_of_the_policy_end_token_and_spread_characters_included(
    trajectory, scored_group, tmp_path_factory
):
    processor = make_processor(tmp_path_factory.mktemp("policy"))
    said = tuple(processor.encode("3°</think><|im_end|>"))  # ° is two tokens
    turn = replace(trajectory(0, 1).turns[0], completion=Completion(said, (-0.5,) * len(said), "stop", 0))
    scored = scored_group([replace(trajectory(), turns=(turn,))], [(1.0, 1.0)])
    (record,) = records([scored], processor.pieces)
    assert record["turns"][0]["tokens"] == ["3", "", "°", "</think>", "<|im_end|>"]


def test_records_are_json_lines_up_to_a_limit(tmp_path):
    path = write_step(tmp_path / "trajectories", 7, islice(records([scored_golden()], ids), 2))
    assert path.name == "step_000007.jsonl"
    assert [json.loads(line)["sibling"] for line in path.read_text().splitlines()] == [0, 1]


def test_records_stay_strict_json_whatever_was_measured(trajectory, scored_group, tmp_path):
    broken = Completion((11, 12), (-math.inf, -0.0000001), "stop", 0)
    turn = replace(trajectory().turns[0], completion=broken)
    scored = scored_group([replace(trajectory(), turns=(turn,), answer_text="°")], [(math.inf, 1.0)])
    scored = replace(scored, group=replace(scored.group, task=replace(scored.group.task, video_path="/clip\udcff.mp4")))
    seen = [(np.array([math.nan, -0.2], np.float32),)]

    write_records(tmp_path / "r.jsonl", records([scored], ids, credit_PG=[(Credit(0.0, 1.0),)], logprobs_PG=seen))

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    record = json.loads((tmp_path / "r.jsonl").read_text(encoding="utf-8"), parse_constant=refuse)
    (shown,) = record["turns"]
    assert (shown["logprobs"], shown["learner_logprobs"]) == (["-inf", 0.0], ["nan", -0.2])
    assert (shown["mean_logprob"], record["rewards"]["sampling"]) == ("-inf", "inf")
    assert (record["task"]["video"], record["text"]) == ("/clip\udcff.mp4", "°")


def test_what_was_learned_must_be_of_the_same_siblings(trajectory, scored_group):
    scored = scored_group([trajectory(), trajectory()], [(1.0, 1.0), (0.0, 0.0)])
    with pytest.raises(ValueError, match="zip"):
        list(records([scored], ids, credit_PG=[(NOT_LEARNED,)]))


def test_held_out_means_leave_failures_out_and_count_them():
    group = golden_group()
    good, bad = SegmentRewards(0.8, 1.0, {"answer": 1.0}), SegmentRewards(0.4, 0.0, {"answer": 0.0})
    rewards = (good, bad, RewardFailure("answer", "raised", ""), bad)
    metrics = held_out_metrics([ScoredGroup(group, rewards)], answer_terms=["answer"])
    assert metrics["held_out/reward_sampling"] == pytest.approx((0.8 + 0.4 + 0.4) / 3)
    assert metrics["held_out/accuracy"] == pytest.approx(1 / 3)
    assert (metrics["held_out/tasks"], metrics["held_out/failed"]) == (4.0, 1.0)


def test_accuracy_without_an_answer_reward_is_unknown_not_zero():
    group = golden_group()
    rewards = (SegmentRewards(None, 1.0, {}),) * len(group.trajectories_G)
    metrics = held_out_metrics([ScoredGroup(group, rewards)], answer_terms=[])
    assert math.isnan(metrics["held_out/accuracy"]) and math.isnan(metrics["held_out/reward_sampling"])
