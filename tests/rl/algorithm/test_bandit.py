"""Every credit rule on an exactly enumerable bandit, against the analytic gradient of what it should climb.

A baseline that contains the sample itself shrinks the expected gradient of every rule by 1 - 1/G; with `scale: none`
this is the only constant, so that biases are exact numbers.
"""

import numpy as np
import pytest

from benchmarks.learning.bandit import ANSWER, LOOK, Bandit, by, estimator, measure
from rl.algorithm.advantages import Credit, group_advantages
from rl.config.algorithm import AdvantageConfig

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
    rows = {(row.world, row.rules): row for row in measure(G)}

    for world in ("in agreement", "lucky answers", "hard answers", "wrong labels"):
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
                s * o.look_score_D + (r if o.called else s + r) * o.answer_score_D
                for s, r, o in zip(sampling_G, reasoning_G, group, strict=True)
            )
            / 2
        )
    assert np.mean(gradients_ND, axis=0) == pytest.approx(exact.mean_D, abs=0.03)
    assert np.var(gradients_ND, axis=0) == pytest.approx(exact.variance_D, abs=0.03)


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
