"""Every credit rule on an exactly enumerable bandit, against the analytic gradient of what it should climb.

A baseline that contains the sample itself shrinks the expected gradient of every rule by 1 - 1/G; with `scale: none`
this is the only constant, so that biases are exact numbers.
"""

import math

import numpy as np
import pytest

from benchmarks.learning import bandit as bandit_module
from benchmarks.learning.bandit import ANSWER, LOOK, Bandit, Regime, by, estimator, measure
from rl.algorithm.advantages import Credit, group_advantages
from rl.config.algorithm import AdvantageConfig
from rl.trajectory import SegmentRewards

G = 3
SHRINK = 1 - 1 / G
CALL, WINDOWS, READ = 0, slice(1, 4), 4
WORLDS = [Bandit(), Bandit(options=2), Bandit(wrong_labels=0.5), Bandit(call_logit=-1.0, read_logit=-0.4)]


def mean_gradient(bandit, **rules):
    return estimator(bandit, by(AdvantageConfig(scale="none", **rules)), G).mean_D


def test_the_analytic_gradient_is_that_of_the_expected_rewards():
    step = 1e-6

    def expected_rewards(**moved):
        bandit = Bandit(wrong_labels=0.25, **moved)
        pairs = [(share * o.probability, o) for share, outcomes in bandit.task_kinds() for o in outcomes]
        assert sum(p for p, _ in pairs) == pytest.approx(1.0)
        return np.array([sum(p * o.sampling for p, o in pairs), sum(p * o.reasoning for p, o in pairs)])

    by_call, by_read = (
        (expected_rewards(**{name: at + step}) - expected_rewards(**{name: at - step})) / (2 * step)
        for name, at in (("call_logit", 0.4), ("read_logit", 1.5))
    )
    sampling_D, reasoning_D = Bandit(wrong_labels=0.25).objective_gradients()
    assert (sampling_D[CALL], reasoning_D[CALL]) == pytest.approx(tuple(by_call), abs=1e-8)
    assert (sampling_D[READ], reasoning_D[READ]) == pytest.approx(tuple(by_read), abs=1e-8)


@pytest.mark.parametrize("bandit", WORLDS)
def test_grpo_is_unbiased_for_its_weighted_sum(bandit):
    sampling_D, reasoning_D = bandit.objective_gradients()

    expected_D = SHRINK * (0.8 * sampling_D + 0.2 * reasoning_D)
    found_D = mean_gradient(bandit, method="grpo", sampling_weight=0.8, reasoning_weight=0.2)
    assert found_D == pytest.approx(expected_D, abs=1e-12)


@pytest.mark.parametrize("bandit", WORLDS)
def test_full_cross_credit_makes_sd_grpo_unbiased_for_the_sum_of_both_rewards(bandit):
    sampling_D, reasoning_D = bandit.objective_gradients()

    assert mean_gradient(bandit, cross_credit=1.0) == pytest.approx(SHRINK * (sampling_D + reasoning_D), abs=1e-12)


@pytest.mark.parametrize("bandit", WORLDS)
def test_sd_grpo_pays_windows_for_themselves_and_answers_for_themselves(bandit):
    sampling_D, reasoning_D = bandit.objective_gradients()
    found_D = mean_gradient(bandit)

    assert found_D[WINDOWS] == pytest.approx(SHRINK * sampling_D[WINDOWS], abs=1e-12)
    assert found_D[READ] == pytest.approx(SHRINK * reasoning_D[READ], abs=1e-12)
    # whether to call at all: declining is one segment in both roles, calling is not, which leaves P(call) of R_reason
    call = 1 / (1 + np.exp(-bandit.call_logit))
    assert found_D[CALL] == pytest.approx(SHRINK * (sampling_D[CALL] + call * reasoning_D[CALL]), abs=1e-12)


def test_segment_decoupling_scatters_less_in_either_segment():
    worlds = {"lucky answers": Bandit(options=2), "hard answers": Bandit(read_logit=-0.4)}
    worlds |= {f"{share:.0%} wrong labels": Bandit(wrong_labels=share) for share in (0.0, 0.1, 0.3)}
    rows = {(r.regime, r.rules): r for r in measure({name: Regime(world, G) for name, world in worlds.items()})}

    for world in worlds:
        grpo, decoupled = rows[world, "grpo"], rows[world, "sd_grpo"]
        assert decoupled.look_noise < 0.9 * grpo.look_noise
        assert decoupled.answer_noise < grpo.answer_noise
        assert decoupled.bias > grpo.bias  # the price: a look is not paid for the answer it makes possible


def test_the_mean_and_variance_are_those_of_sampled_groups():
    bandit, rules, rng = Bandit(wrong_labels=0.5), AdvantageConfig(), np.random.default_rng(0)
    exact = estimator(bandit, by(rules), 2)
    kinds = bandit.task_kinds()
    gradients_ND = []
    for _ in range(4000):
        outcomes = kinds[rng.choice(len(kinds), p=[share for share, _ in kinds])][1]
        group = [outcomes[i] for i in rng.choice(len(outcomes), size=2, p=[o.probability for o in outcomes])]
        sampling_G, reasoning_G = (group_advantages([getattr(o, r) for o in group]) for r in ("sampling", "reasoning"))
        gradients_ND.append(
            sum(
                s * sum(o.look_scores) + (r if o.called else s + r) * o.answer_score_D
                for s, r, o in zip(sampling_G, reasoning_G, group, strict=True)
            )
            / 2
        )
    assert np.mean(gradients_ND, axis=0) == pytest.approx(exact.mean_D, abs=0.03)
    assert np.var(gradients_ND, axis=0) == pytest.approx(exact.variance_D, abs=0.03)


TWICE = Bandit(looks=2, shows_evidence=(0.0, 1.0, 1.0))  # few outcomes
FIRST_WINDOWS, AGAIN, SECOND_WINDOWS, READ_AFTER = slice(1, 4), 4, slice(5, 8), 8


def gradient_of_call(bandit, number):
    """Analytic gradient of the expected reward of the look of this number, by the tokens of that look."""
    outcomes = [(share * o.probability, o) for share, found in bandit.task_kinds() for o in found]
    return sum(p * o.calls[number] * o.look_scores[number] for p, o in outcomes if len(o.calls) > number)


def test_each_call_climbs_its_own_reward():
    found_D = mean_gradient(TWICE, calls="each")
    again = 1 / (1 + np.exp(-TWICE.again_logit))
    calling_twice = again / (1 + np.exp(-TWICE.call_logit))
    both = [calling_twice**n * (1 - calling_twice) ** (G - n) * math.comb(G, n) * n * (1 - 1 / n) for n in (2, 3)]

    assert found_D[FIRST_WINDOWS] == pytest.approx(SHRINK * gradient_of_call(TWICE, 0)[FIRST_WINDOWS], abs=1e-12)
    # of n siblings that look twice each is compared with n, so 1 - 1/n of the gradient is left: n = 1, 2, 3
    left = sum(both) / (G * calling_twice)
    assert found_D[SECOND_WINDOWS] == pytest.approx(left * gradient_of_call(TWICE, 1)[SECOND_WINDOWS], abs=1e-12)
    assert np.linalg.norm(found_D[SECOND_WINDOWS]) > 0.01


def test_the_rewards_of_calls_say_nothing_about_calling_again():
    def by_calls_alone(rewards_G, called_G):
        silent_G = [SegmentRewards(one.sampling, 0.0, {}, one.calls) for one in rewards_G]
        return by(AdvantageConfig(calls="each", scale="none"))(silent_G, called_G)

    assert estimator(TWICE, by_calls_alone, G).mean_D[AGAIN] == pytest.approx(0.0, abs=1e-12)


def test_full_cross_credit_over_several_calls_is_unbiased_for_grpo_and_not_for_calls_together():
    sampling_D, reasoning_D = TWICE.objective_gradients()

    expected_D = SHRINK * (0.5 * sampling_D + 0.5 * reasoning_D)
    assert mean_gradient(TWICE, method="grpo") == pytest.approx(expected_D, abs=1e-12)
    # the turn that declines a second look earns R_reason alone: windows and reading are paid in full, asking is not
    found_D = mean_gradient(TWICE, cross_credit=1.0)
    others = [*range(*FIRST_WINDOWS.indices(9)), *range(*SECOND_WINDOWS.indices(9)), READ_AFTER]
    assert found_D[others] == pytest.approx(SHRINK * (sampling_D + reasoning_D)[others], abs=1e-12)
    assert abs(found_D[AGAIN] - SHRINK * (sampling_D + reasoning_D)[AGAIN]) > 0.01


def test_where_groups_are_too_many_they_are_drawn(monkeypatch):
    exact = estimator(Bandit(), by(AdvantageConfig()), 3)
    monkeypatch.setattr(bandit_module, "MOST_GROUPS", 10)
    monkeypatch.setattr(bandit_module, "SAMPLED_GROUPS", 4000)
    drawn = estimator(Bandit(), by(AdvantageConfig()), 3)

    assert not np.array_equal(drawn.mean_D, exact.mean_D)
    assert drawn.mean_D == pytest.approx(exact.mean_D, abs=0.03)
    assert drawn.variance_D == pytest.approx(exact.variance_D, abs=0.03)


def silent(world):
    """Only R_samp: nothing is said about answers."""
    return lambda credit_of: estimator(world, lambda r, called: credit_of([x.sampling for x in r], called), G).mean_D


def callers_only(sampling_G, called_G):
    """The tempting mistake: a baseline over the siblings that called."""
    asked = [reward for reward, called in zip(sampling_G, called_G, strict=True) if called]
    return [
        Credit(reward - sum(asked) / len(asked), 0.0) if called else Credit(0.0, 0.0)
        for reward, called in zip(sampling_G, called_G, strict=True)
    ]


def one_role_only(sampling_G, called_G):
    """The other one: whole-group baseline, but declining to look gets no credit for R_samp."""
    centred_G = group_advantages(sampling_G, "none")
    return [Credit(own if called else 0.0, 0.0) for own, called in zip(centred_G, called_G, strict=True)]


def test_a_baseline_over_callers_alone_never_learns_to_call():
    bandit = Bandit()

    assert silent(bandit)(callers_only)[CALL] == pytest.approx(0.0, abs=1e-12)
    assert bandit.objective_gradients()[0][CALL] > 0.05  # calling pays in this world


def test_a_decision_not_to_call_without_credit_shrinks_the_gradient_towards_calling():
    bandit = Bandit()
    sampling_D, _ = bandit.objective_gradients()
    found_D = silent(bandit)(one_role_only)

    call = 1 / (1 + np.exp(-bandit.call_logit))
    assert found_D[CALL] == pytest.approx((1 - call) * SHRINK * sampling_D[CALL], abs=1e-12)
    assert found_D[WINDOWS] == pytest.approx(SHRINK * sampling_D[WINDOWS], abs=1e-12)


def test_looks_and_answers_have_parameters_of_their_own():
    sampling_D, reasoning_D = Bandit().objective_gradients()

    assert sampling_D[ANSWER] == pytest.approx(0.0)  # R_samp does not depend on how the answer is read
    assert np.linalg.norm(reasoning_D[LOOK]) > 0.05  # but the answer does on the look
