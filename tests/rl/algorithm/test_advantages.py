"""Credit is relative to the group, and each segment gets its own."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.algorithm.advantages import METHODS, Credit, credit_group, group_advantages, token_advantages
from rl.config.algorithm import AdvantageConfig
from rl.trajectory import RewardFailure, Segment, SegmentRewards

FAILED = RewardFailure("mine", "raised", "KeyError")
REWARD = st.floats(0, 1, allow_nan=False)
SIBLINGS = st.lists(st.tuples(REWARD, REWARD, st.booleans()), min_size=2, max_size=6)
RULES = st.builds(
    AdvantageConfig,
    method=st.sampled_from(sorted(METHODS)),
    scale=st.sampled_from(["std", "none"]),
    cross_credit=st.floats(0, 1),
)


def rewards(*pairs):
    return [pair if isinstance(pair, RewardFailure) else SegmentRewards(*pair, breakdown={}) for pair in pairs]


def credit(*pairs, called=None, **rules):
    called = [True] * len(pairs) if called is None else called
    return credit_group(rewards(*pairs), called, AdvantageConfig(**rules))


def values(group_credit):
    return [(own.sampling, own.reasoning) for own in group_credit.credit_G]


def test_hand_computed_group_of_two():
    looked_well, answered_well = values(credit((1.0, 0.0), (0.0, 0.5)))

    # R_samp 1, 0: mean .5, std .5; R_reason 0, .5: mean .25, std .25
    assert looked_well == pytest.approx((0.5 / 0.5001, -0.25 / 0.2501), abs=1e-12)
    assert answered_well == pytest.approx((-0.5 / 0.5001, 0.25 / 0.2501), abs=1e-12)


def test_without_scaling_only_the_mean_is_taken_off():
    assert values(credit((1.0, 0.0), (0.0, 0.5), scale="none")) == [(0.5, -0.25), (-0.5, 0.25)]


def test_a_trajectory_without_a_call_plays_both_roles():
    _, never_called = values(credit((1.0, 0.0), (0.0, 0.5), called=[True, False], scale="none"))

    assert never_called == (-0.5 + 0.25, -0.5 + 0.25)


def test_siblings_that_never_called_count_in_the_sampling_baseline():
    caller, *_ = values(credit((0.9, 0), (0, 0), (0, 0), called=[True, False, False], scale="none"))

    assert caller[0] == pytest.approx(0.9 - 0.3)


def test_cross_credit_gives_sampling_tokens_a_share_of_the_answer():
    first, second = values(credit((1.0, 0.0), (0.0, 0.5), cross_credit=0.4, scale="none"))

    assert first == pytest.approx((0.5 - 0.4 * 0.25, -0.25))
    assert second == pytest.approx((-0.5 + 0.4 * 0.25, 0.25))


def test_a_task_without_evidence_credits_its_calls_with_the_answer_or_masks_them():
    assert values(credit((None, 1.0), (None, 0.0), scale="none")) == [(0.5, 0.5), (-0.5, -0.5)]
    assert values(credit((None, 1.0), (None, 0.0), scale="none", unannotated="mask")) == [(None, 0.5), (None, -0.5)]


def test_failures_are_masked_and_stay_out_of_the_baseline():
    group = credit((1.0, 1.0), FAILED, (0.0, 0.0), scale="none")

    assert values(group) == [(0.5, 0.5), (None, None), (-0.5, -0.5)]


def test_a_group_left_with_one_score_is_masked():
    group = credit((1.0, 1.0), FAILED, FAILED)

    assert values(group) == [(None, None)] * 3
    assert group.is_zero_variance


@pytest.mark.parametrize("method", METHODS)
def test_a_group_of_one_is_refused(method):
    with pytest.raises(ValueError, match="at least 2 siblings, got 1"):
        credit((1.0, 1.0), method=method)


def test_a_sampling_reward_for_some_siblings_only_is_refused():
    with pytest.raises(ValueError, match="R_samp is missing for some"):
        credit((1.0, 1.0), (None, 1.0))


@given(st.tuples(REWARD, REWARD), st.integers(2, 9), st.lists(st.booleans(), min_size=9, max_size=9), RULES)
def test_equal_rewards_give_no_advantage(pair, siblings, called, rules):
    group = credit_group(rewards(*[pair] * siblings), called[:siblings], rules)

    assert all(own == Credit(0.0, 0.0) for own in group.credit_G)  # exactly
    assert group.is_zero_variance


def test_zero_variance_is_known_by_role():
    answers_differ = credit((0.3, 1.0), (0.3, 0.0))
    assert (answers_differ.zero_variance_sampling, answers_differ.zero_variance_reasoning) == (True, False)
    assert not answers_differ.is_zero_variance

    unannotated = credit((None, 1.0), (None, 1.0))
    assert (unannotated.zero_variance_sampling, unannotated.is_zero_variance) == (None, True)


@given(SIBLINGS, RULES, st.randoms())
def test_permuting_siblings_permutes_advantages(siblings, rules, rng: random.Random):
    order = list(range(len(siblings)))
    rng.shuffle(order)

    def credits_of(group):
        return credit_group(rewards(*[(s, r) for s, r, _ in group]), [called for *_, called in group], rules).credit_G

    straight = credits_of(siblings)
    assert credits_of([siblings[i] for i in order]) == tuple(straight[i] for i in order)  # exactly


@given(st.lists(REWARD, min_size=2, max_size=9), st.sampled_from(["std", "none"]))
def test_group_advantages_against_plain_loops(group, scale):
    mean = sum(group) / len(group)
    std = math.sqrt(sum((r - mean) ** 2 for r in group) / len(group))
    expected = [(r - mean) / (std + 1e-4 if scale == "std" else 1.0) for r in group]

    assert group_advantages(group, scale) == pytest.approx(expected, abs=1e-9)
    assert sum(group_advantages(group, scale)) == pytest.approx(0.0, abs=1e-9)


def test_grpo_is_one_scalar_from_the_weighted_sum():
    first, second = values(
        credit((1.0, 0.0), (0.0, 0.5), method="grpo", scale="none", sampling_weight=0.8, reasoning_weight=0.2)
    )

    # totals .8 and .1
    assert first == pytest.approx((0.35, 0.35))
    assert second == pytest.approx((-0.35, -0.35))


def test_gdpo_normalises_each_reward_before_it_sums():
    group = credit((1.0, 0.0), (0.0, 0.01), method="gdpo", sampling_weight=0.5, reasoning_weight=0.5)

    # a reward of small differences weighs almost as much as one of large: .5 / .5001 against .005 / .0051
    total = 0.5 * 0.5 / 0.5001 - 0.5 * 0.005 / 0.0051
    assert values(group) == [pytest.approx((total, total)), pytest.approx((-total, -total))]


@pytest.mark.parametrize("method", ["grpo", "gdpo"])
def test_scalar_methods_know_tasks_without_evidence(method):
    shared = values(credit((None, 1.0), (None, 0.0), method=method, scale="none"))
    masked = values(credit((None, 1.0), (None, 0.0), method=method, scale="none", unannotated="mask"))

    assert shared == [(0.5, 0.5), (-0.5, -0.5)]
    assert masked == [(None, 0.5), (None, -0.5)]


def test_credit_spreads_over_the_tokens_of_its_segment():
    context, sampling, reasoning = Segment.CONTEXT.value, Segment.SAMPLING.value, Segment.REASONING.value
    segment_ids = (context, sampling, sampling, context, reasoning)

    assert token_advantages(Credit(2.0, -1.0), segment_ids) == (
        (0.0, 2.0, 2.0, 0.0, -1.0),
        (False, True, True, False, True),
    )
    assert token_advantages(Credit(None, 0.0), segment_ids) == ((0.0,) * 5, (False, False, False, False, True))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_name_in_the_configuration(method):
    assert AdvantageConfig(method=method).method == method


@pytest.mark.parametrize("wrong", [{"method": "ppo"}, {"scale": "mad"}, {"unannotated": "zero"}])
def test_unknown_options_are_refused(wrong):
    with pytest.raises(ValueError, match="must be one of"):
        AdvantageConfig(**wrong)
