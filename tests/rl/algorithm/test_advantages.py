"""Credit is relative to the group, and each segment gets its own."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.algorithm.advantages import METHODS, Credit, credit_group, group_advantages, rules_at, token_advantages
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


def by_call(*siblings, **rules):
    """Credit of siblings given as (rewards of their calls, R_reason), each call by its own reward."""
    scored = [SegmentRewards(sum(calls) / max(len(calls), 1), reason, {}, tuple(calls)) for calls, reason in siblings]
    called = [bool(calls) for calls, _ in siblings]
    return credit_group(scored, called, AdvantageConfig(calls="each", scale="none", **rules))


def test_each_call_is_compared_with_the_calls_of_its_number():
    group = by_call(((0.8, 0.2), 1.0), ((0.4, 0.6), 0.0), ((0.6,), 0.0), ((), 0.0))

    # first calls .8 .4 .6 and 0 without one: mean .45; second calls .2 .6: mean .4; R_reason: mean .25
    assert [own.calls for own in group.credit_G] == [
        pytest.approx((0.35, -0.2)),
        pytest.approx((-0.05, 0.2)),
        pytest.approx((0.15,)),
        (),
    ]
    assert [own.reasoning for own in group.credit_G] == pytest.approx([0.75, -0.25, -0.25, -0.45 - 0.25])
    assert group.credit_G[3].sampling == pytest.approx(-0.45 - 0.25)  # without a call: both roles
    assert not group.zero_variance_sampling


def test_cross_credit_goes_to_every_call():
    first, _ = by_call(((0.8, 0.2), 1.0), ((0.4, 0.6), 0.0), cross_credit=0.5).credit_G

    assert first.calls == pytest.approx((0.2 + 0.25, -0.2 + 0.25))


def test_a_call_that_nobody_else_made_has_no_advantage():
    first, second = by_call(((0.5, 0.9), 1.0), ((0.5,), 1.0)).credit_G

    assert (first.calls, second.calls) == ((0.0, 0.0), (0.0,))


@given(SIBLINGS, st.sampled_from(["std", "none"]), st.floats(0, 1))
def test_with_one_call_each_call_is_credited_as_together(siblings, scale, cross_credit):
    scored = [SegmentRewards(s if called else 0.0, r, {}, (s,) if called else ()) for s, r, called in siblings]
    called_G = [called for *_, called in siblings]
    together, each = (
        credit_group(scored, called_G, AdvantageConfig(calls=calls, scale=scale, cross_credit=cross_credit))
        for calls in ("together", "each")
    )

    assert [(own.of(Segment.SAMPLING, 0), own.reasoning) for own in each.credit_G] == values(together)  # exactly
    assert each.zero_variance_sampling == together.zero_variance_sampling


def test_a_caller_without_rewards_of_its_calls_cannot_be_credited_by_them():
    with pytest.raises(ValueError, match="has none of its calls"):
        credit((1.0, 0.0), (0.0, 0.5), calls="each")


def test_a_task_without_evidence_has_nothing_to_credit_each_call_with():
    assert values(credit((None, 1.0), (None, 0.0), scale="none", calls="each")) == [(0.5, 0.5), (-0.5, -0.5)]


@pytest.mark.parametrize(("step", "cross_credit"), [(0, 1.0), (15, 0.75), (30, 0.5), (60, 0.0), (90, 0.0)])
def test_cross_credit_goes_to_its_end_on_a_straight_line_and_stays_there(step, cross_credit):
    rules = AdvantageConfig(cross_credit=1.0, cross_credit_steps=60)

    assert rules_at(rules, step) == AdvantageConfig(cross_credit=cross_credit)


def test_without_a_schedule_the_rules_are_those_of_every_step():
    rules = AdvantageConfig(cross_credit=0.25, cross_credit_end=1.0)

    assert rules_at(rules, 0) is rules and rules_at(rules, 99) is rules


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
    segment_ids, turn_ids = (context, sampling, sampling, context, reasoning), (0, 0, 0, 1, 1)

    assert token_advantages(Credit(2.0, -1.0), segment_ids, turn_ids) == (
        (0.0, 2.0, 2.0, 0.0, -1.0),
        (False, True, True, False, True),
    )
    masked = token_advantages(Credit(None, 0.0), segment_ids, turn_ids)
    assert masked == ((0.0,) * 5, (False, False, False, False, True))


def test_a_call_with_credit_of_its_own_is_known_by_its_turn():
    context, sampling, reasoning = Segment.CONTEXT.value, Segment.SAMPLING.value, Segment.REASONING.value
    segment_ids, turn_ids = (context, sampling, context, sampling, context, reasoning), (0, 0, 1, 1, 2, 2)

    advantages_T, _ = token_advantages(Credit(0.0, -1.0, calls=(2.0, -2.0)), segment_ids, turn_ids)
    assert advantages_T == (0.0, 2.0, 0.0, -2.0, 0.0, -1.0)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_name_in_the_configuration(method):
    assert AdvantageConfig(method=method).method == method


@pytest.mark.parametrize("wrong", [{"method": "ppo"}, {"scale": "mad"}, {"unannotated": "zero"}, {"calls": "both"}])
def test_unknown_options_are_refused(wrong):
    with pytest.raises(ValueError, match="must be one of"):
        AdvantageConfig(**wrong)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"method": "grpo", "calls": "each"}, "take sd_grpo, or calls=together"),
        ({"cross_credit_steps": -1}, "cross_credit_steps must be >= 0, got -1"),
    ],
)
def test_options_that_contradict_each_other_are_refused(wrong, why):
    with pytest.raises(ValueError, match=why):
        AdvantageConfig(**wrong)
