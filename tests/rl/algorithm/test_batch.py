"""From scored groups to tensors: credit lands on the right tokens, groups stay whole, splitting changes nothing."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.algorithm.advantages import NOT_LEARNED
from rl.algorithm.batch import (
    assign_ranks,
    build_training_samples,
    credit_metrics,
    gather_ranks,
    learned_credit,
    loss_totals,
)
from rl.algorithm.loss_totals import LossTotals
from rl.config.algorithm import AdvantageConfig
from rl.trajectory import RewardFailure, SegmentRewards, StopReason
from tests.remote_groups import remote_scored

FAILED = RewardFailure("mine", "raised", "KeyError")


def test_right_retrieval_is_credited_even_when_the_answer_is_wrong(trajectory, scored_group):
    looked_well_answered_badly = trajectory(sampling=2, reasoning=1)  # token counts per segment
    looked_badly_answered_well = trajectory(sampling=1, reasoning=2)
    scored = scored_group([looked_well_answered_badly, looked_badly_answered_well], [(1.0, 0.0), (0.0, 1.0)])

    first, second = build_training_samples(scored)

    #                                         ctx   sampling     ctx   reasoning
    assert first.advantages == pytest.approx([0.0, +1.0, +1.0, 0.0, -1.0], abs=1e-3)
    assert second.advantages == pytest.approx([0.0, -1.0, 0.0, +1.0, +1.0], abs=1e-3)
    assert first.loss_mask == (False, True, True, False, True)


def test_what_cannot_be_learned_from_is_left_out(trajectory, scored_group):
    truncated, unreadable = trajectory(1, 2, stop=StopReason.TRUNCATED), replace(trajectory(), turns=())
    siblings = [trajectory(1, 1), trajectory(2, 1), trajectory(3, 1), truncated, unreadable]
    scored = scored_group(siblings, [(1.0, 1.0), (0.0, 1.0), FAILED, (0.5, 0.0), FAILED])

    kept = build_training_samples(scored)
    with_truncated = build_training_samples(scored, mask_truncated=False)

    assert [sample and len(sample.token_ids) for sample in kept] == [4, 5, None, None, None]
    assert [sample is not None for sample in with_truncated] == [True, True, False, True, False]
    assert kept[:2] == with_truncated[:2]  # a truncated sibling is in the baseline either way


def test_a_group_of_one_is_refused(trajectory, scored_group):
    with pytest.raises(ValueError, match="at least 2 siblings"):
        build_training_samples(scored_group([trajectory()], [(1.0, 1.0)]))


def test_samples_follow_their_siblings(trajectory, scored_group):
    siblings, rewards = [trajectory(1, 2), trajectory(0, 3), trajectory(2, 2)], [(0.9, 0.1), (0.0, 1.0), (0.2, 0.4)]
    order = [2, 0, 1]

    straight = build_training_samples(scored_group(siblings, rewards))
    permuted = build_training_samples(scored_group([siblings[i] for i in order], [rewards[i] for i in order]))

    assert permuted == tuple(straight[i] for i in order)


def test_credit_is_what_the_tokens_of_the_samples_carry_and_none_where_there_is_no_sample(trajectory, scored_group):
    truncated = trajectory(1, 2, stop=StopReason.TRUNCATED)
    scored = scored_group([trajectory(1, 1), truncated, trajectory(2, 1)], [(1.0, 0.0), (0.5, 1.0), FAILED])

    credit_G, samples_G = learned_credit(scored), build_training_samples(scored)

    assert samples_G[0].advantages == (0.0, credit_G[0].sampling, 0.0, credit_G[0].reasoning)
    assert credit_G[1:] == (NOT_LEARNED, NOT_LEARNED) and samples_G[1:] == (None, None)
    assert learned_credit(scored, mask_truncated=False)[1].reasoning == pytest.approx(1.0, abs=1e-3)


def test_credit_metrics(trajectory, scored_group):
    rules = AdvantageConfig(scale="none")
    looks_differ = scored_group([trajectory(1, 3), trajectory(3, 1)], [(1.0, 0.5), (0.0, 0.5)])
    nothing_differs = scored_group([trajectory(1, 1), trajectory(1, 1)], [(0.5, 0.5), (0.5, 0.5)])

    metrics = credit_metrics(remote_scored([looks_differ, nothing_differs]), rules)

    assert metrics == {
        "group/zero_variance_sampling": 0.5,
        "group/zero_variance_reasoning": 1.0,
        "group/zero_variance_both": 0.5,
        "advantage/sampling": pytest.approx(4 * 0.5 / 6),
        "advantage/reasoning": 0.0,
    }


def test_cross_credit_is_told_where_there_is_any(trajectory, scored_group):
    scored = remote_scored([scored_group([trajectory(1, 1), trajectory(1, 1)], [(1.0, 0.5), (0.0, 0.5)])])

    assert credit_metrics(scored, AdvantageConfig(cross_credit=0.25))["advantage/cross_credit"] == 0.25
    assert "advantage/cross_credit" not in credit_metrics(scored)


def test_every_call_carries_its_own_credit(trajectory, scored_group):
    first_was_better = SegmentRewards(0.5, 1.0, {}, (1.0, 0.0))
    second_was_better = SegmentRewards(0.5, 1.0, {}, (0.0, 1.0))
    scored = scored_group([trajectory((1, 2), 1), trajectory((2, 1), 1)], [first_was_better, second_was_better])

    first, second = build_training_samples(scored, AdvantageConfig(calls="each"))

    #                                         ctx  call 1     ctx  call 2          ctx  reasoning
    assert first.advantages == pytest.approx([0.0, +1.0, 0.0, -1.0, -1.0, 0.0, 0.0], abs=1e-3)
    assert second.advantages == pytest.approx([0.0, -1.0, -1.0, 0.0, +1.0, 0.0, 0.0], abs=1e-3)
    assert all(sample.advantages == (0.0,) * 7 for sample in build_training_samples(scored))  # together: no difference


def test_totals_count_what_is_learned_from(trajectory, scored_group):
    samples = build_training_samples(scored_group([trajectory(2, 1), trajectory(0, 2)], [(1.0, 0.0), (0.0, 1.0)]))
    masked = replace(samples[0], loss_mask=(False,) * len(samples[0].token_ids))

    assert loss_totals([*samples, masked]) == LossTotals(num_sequences=2, num_tokens=5)
    assert loss_totals(samples[:1]) + loss_totals(samples[1:]) == loss_totals(samples)


@pytest.mark.parametrize(
    ("lengths", "tokens"), [([9, 1, 1, 9], [10, 10]), ([9, 9, 1, 1], [10, 10]), ([5, 4, 3, 2], [7, 7])]
)
def test_ranks_get_equal_shares_of_tokens(lengths, tokens):
    assert [sum(lengths[i] for i in rank) for rank in assign_ranks(lengths, 2)] == tokens


@given(st.lists(st.integers(1, 30), max_size=9), st.integers(1, 4))
def test_every_group_goes_whole_to_exactly_one_rank(lengths, world_size):
    ranks = assign_ranks(lengths, world_size)

    assert len(ranks) == world_size
    assert sorted(index for rank in ranks for index in rank) == list(range(len(lengths)))
    sizes = [len(rank) for rank in ranks]
    assert max(sizes) <= -(-len(lengths) // world_size)
    assert assign_ranks(lengths, world_size) == ranks
    assert gather_ranks(ranks, [[lengths[i] for i in rank] for rank in ranks]) == tuple(lengths)
