"""Every inserted frame has its price; who inserts none pays nothing."""

from dataclasses import replace

import pytest

from actors.reward import weighted_rewards
from rewards.frame_cost import frame_cost
from rewards.scoring import score_group
from rl.config.rewards import RewardTermConfig
from rl.trajectory import TrajectoryGroup


@pytest.fixture
def look(call):
    return lambda frames: replace(call(3, 6), num_frames=frames)


@pytest.mark.parametrize(
    ("frames", "args", "reward"),
    [
        (1, {}, -1 / 32),
        (32, {}, -1.0),
        (8, {"budget_frames": 16}, -0.5),
        (16, {"budget_frames": 16, "price": 0.25}, -0.25),
        (24, {"budget_frames": 16}, -1.5),  # beyond the budget it goes on
        (16, {"price": 0.0}, 0.0),
    ],
)
def test_the_price_is_of_inserted_frames(task, look, frames, args, reward):
    assert frame_cost(task(), look(frames), **args) == pytest.approx(reward)


@pytest.mark.parametrize("args", [{"price": -1.0}, {"budget_frames": 0}])
def test_what_is_no_price_is_refused(task, look, args):
    with pytest.raises(ValueError, match=next(iter(args))):
        frame_cost(task(), look(1), **args)


def test_a_task_without_an_annotated_rate_is_charged_as_well(task, look):
    assert frame_cost(task(fps=None), look(16)) == -0.5


def test_looks_add_up_and_declining_is_free(task, look, malformed, trajectory_of):
    siblings = [trajectory_of(calls=calls) for calls in ((look(8),), (look(8), look(16)), (malformed,), ())]
    declared = RewardTermConfig("frame_cost", "sampling", args={"budget_frames": 16})

    scored = score_group(TrajectoryGroup(task(), tuple(siblings), None), weighted_rewards({"cost": declared}))

    assert [own.sampling for own in scored.rewards_G] == [-0.5, -1.5, 0.0, 0.0]


def test_beside_other_terms_it_has_its_share_and_without_weight_none(task, look, trajectory_of):
    group = TrajectoryGroup(task(), (trajectory_of(calls=[look(16)]),), None)
    window = RewardTermConfig("temporal_iou", "sampling")

    def sampling(**cost):
        (scores,) = score_group(group, weighted_rewards({"window": window, **cost})).rewards_G
        return scores.sampling

    priced = RewardTermConfig("frame_cost", "sampling", weight=0.5)
    assert sampling(cost=priced) == pytest.approx((1.0 - 0.5 * 16 / 32) / 1.5)  # the IoU is 1
    assert sampling(cost=replace(priced, weight=0.0)) == sampling() == 1.0
