"""A turn boundary is the retrieval boundary: whose a token is follows from its turn."""

from dataclasses import replace

import pytest

from rl.algorithm.segments import flatten
from rl.trajectory import Completion, Segment, Trajectory, trajectory_tokens

C, S, R = Segment.CONTEXT.value, Segment.SAMPLING.value, Segment.REASONING.value


def test_one_call(trajectory, block):
    flat = flatten(trajectory(sampling=2, reasoning=3, frames=block("v1"), version=7), block("v0"))

    assert flat.token_ids == (10, 11, 12, 13, 14, 15, 16)
    assert flat.segment_ids == (C, S, S, C, R, R, R)
    assert flat.turn_ids == (0, 0, 0, 1, 1, 1, 1)
    assert flat.behavior_logprobs == pytest.approx((0, -0.1, -0.2, 0, -0.1, -0.2, -0.3))
    assert flat.policy_versions == (-1, 7, 7, -1, 7, 7, 7)
    assert [frames.digest for frames in flat.videos] == ["v0", "v1"]


def test_without_a_call_everything_is_reasoning(trajectory):
    flat = flatten(trajectory(sampling=0, reasoning=2), None)

    assert flat.segment_ids == (C, R, R)
    assert flat.videos == ()


def test_every_calling_turn_is_sampling(trajectory):
    assert flatten(trajectory(sampling=(1, 2), reasoning=1), None).segment_ids == (C, S, C, S, S, C, R)


def test_a_trajectory_may_end_in_a_call(trajectory):
    assert flatten(trajectory(sampling=2, reasoning=0), None).segment_ids == (C, S, S)


def test_a_trajectory_without_turns_has_no_tokens(trajectory):
    assert len(flatten(replace(trajectory(), turns=()), None)) == 0


def test_columns_are_as_long_as_the_ledger(trajectory):
    looked_twice = trajectory(sampling=(3, 1), reasoning=4)
    flat = flatten(looked_twice, None)

    assert flat.token_ids == trajectory_tokens(looked_twice)
    columns = (flat.segment_ids, flat.turn_ids, flat.behavior_logprobs, flat.policy_versions)
    assert {len(column) for column in columns} == {len(flat)}


def test_a_segment_that_contradicts_its_turn_is_refused(trajectory):
    look, last = trajectory(sampling=1, reasoning=1).turns

    def flattened(*turns):
        flatten(Trajectory(turns, trajectory().stop_reason), None)

    with pytest.raises(ValueError, match="turn 0 is REASONING, but it ends in a call"):
        flattened(replace(look, segment=Segment.REASONING), last)
    with pytest.raises(ValueError, match="turn 1 is SAMPLING, but it ends without a call"):
        flattened(look, replace(last, segment=Segment.SAMPLING))
    with pytest.raises(ValueError, match="turn 0 ends without a call, but is not the last"):
        flattened(last, look)
    with pytest.raises(ValueError, match="turn 0 has 2 tokens, but 1 behaviour log-probs"):
        flattened(replace(last, completion=Completion((1, 2), (-0.1,), "stop", 0)))
