"""The objective, by hand numbers, plain loops and properties. One row is one sequence; C context, S, R segments."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl.algorithm.loss import k3_kl, policy_loss, supervised_loss, tis_weights, token_weights
from rl.algorithm.loss_totals import LossTotals
from rl.trajectory import Segment

C, S, R = (segment.value for segment in (Segment.CONTEXT, Segment.SAMPLING, Segment.REASONING))
SEGMENTS = torch.tensor([[C, S, C, R, R, R], [C, R, R, C, C, C]])
MASK = SEGMENTS > 0
LEARNED = LossTotals(num_sequences=2, num_tokens=6)
LOGPROB = st.floats(-8, 0, allow_nan=False)


def rows(*values):
    return torch.tensor(values, dtype=torch.float32)


def one_row(*values):
    return rows(list(values))


def everywhere(like):
    return torch.ones_like(like, dtype=torch.bool)


@pytest.mark.parametrize(
    ("normaliser", "first", "second"),
    [
        ("sequence", [0, 1 / 8, 0, 1 / 8, 1 / 8, 1 / 8], [0, 1 / 4, 1 / 4, 0, 0, 0]),
        ("token", [0, 1 / 6, 0, 1 / 6, 1 / 6, 1 / 6], [0, 1 / 6, 1 / 6, 0, 0, 0]),
        ("segment", [0, 1 / 4, 0, 1 / 12, 1 / 12, 1 / 12], [0, 1 / 4, 1 / 4, 0, 0, 0]),
        ("constant", [0, 1 / 20, 0, 1 / 20, 1 / 20, 1 / 20], [0, 1 / 20, 1 / 20, 0, 0, 0]),
    ],
)
def test_normalisers(normaliser, first, second):
    weights = token_weights(SEGMENTS, MASK, LEARNED, normaliser=normaliser, constant_tokens=10)

    assert torch.allclose(weights, rows(first, second))


@pytest.mark.parametrize("normaliser", ["sequence", "token", "segment"])
def test_weights_of_a_batch_sum_to_one(normaliser):
    assert float(token_weights(SEGMENTS, MASK, LEARNED, normaliser=normaliser).sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("normaliser", ["sequence", "token", "segment", "constant"])
def test_a_batch_without_a_token_to_learn_weighs_nothing(normaliser):
    nothing = token_weights(SEGMENTS, torch.zeros_like(MASK), LossTotals(0, 0), normaliser=normaliser)

    assert not nothing.any()


def test_a_masked_segment_is_not_a_segment():
    only_reasoning = MASK & (SEGMENTS == R)
    weights = token_weights(SEGMENTS, only_reasoning, LossTotals(2, 5), normaliser="segment")

    assert torch.allclose(weights[0], one_row(0, 0, 0, 1 / 6, 1 / 6, 1 / 6)[0])


def loss_of(logp, old, advantages, **options):
    """One sequence, weight 1 per token."""
    logp = one_row(*logp).requires_grad_()
    terms = policy_loss(logp, one_row(*old), one_row(*advantages), torch.ones_like(logp), everywhere(logp), **options)
    terms.loss.backward()
    return terms, logp.grad[0]


def test_clipped_surrogate_by_hand():
    #             ratio 1.5, good   1.5, bad   0.5, good   0.5, bad   1.1, good
    ratios, advantages = (1.5, 1.5, 0.5, 0.5, 1.1), (2.0, -2.0, 2.0, -2.0, 2.0)
    logp = [math.log(ratio) - 3 for ratio in ratios]

    terms, grad = loss_of(logp, [-3.0] * 5, advantages, ratio="token", clip_low=0.2, clip_high=0.28)

    assert terms.loss.item() == pytest.approx(-(2 * 1.28 - 2 * 1.5 + 2 * 0.5 - 2 * 0.8 + 2 * 1.1), rel=1e-5)
    assert grad.tolist() == pytest.approx([0.0, 3.0, -1.0, 0.0, -2.2], rel=1e-5)  # - ratio * A, or 0 where clipped
    assert terms.clipped_high_BT.tolist() == [[True, False, False, False, False]]
    assert terms.clipped_low_BT.tolist() == [[False, False, False, True, False]]
    assert terms.ratio_BT[0].tolist() == pytest.approx(ratios, rel=1e-5)


def test_gspo_by_hand():
    # mean log ratio (0.4 + 0.0) / 2 = 0.2: both tokens have ratio e^0.2 = 1.2214
    terms, grad = loss_of([-1.0, -2.0], [-1.4, -2.0], [1.0, -3.0], ratio="sequence", clip_high=0.28)

    ratio = math.exp(0.2)
    assert terms.ratio_BT[0].tolist() == pytest.approx([ratio, ratio], rel=1e-5)
    assert terms.loss.item() == pytest.approx(-(ratio - 3 * ratio), rel=1e-5)
    assert grad.tolist() == pytest.approx([-ratio, 3 * ratio], rel=1e-5)  # own advantage only


def test_gspo_clips_a_whole_sequence():
    terms, grad = loss_of([-1.0, -2.0], [-1.9, -2.0], [1.0, 1.0], ratio="sequence", clip_high=0.28)  # e^0.45 = 1.57

    assert terms.loss.item() == pytest.approx(-2 * 1.28, rel=1e-5)
    assert grad.tolist() == [0.0, 0.0]
    assert terms.clipped_high_BT.all()


def test_gspo_counts_tokens_learned_from_only():
    logp, mask = one_row(9.0, -1.0, -2.0), torch.tensor([[False, True, True]])

    terms = policy_loss(
        logp, one_row(0.0, -1.4, -2.0), torch.ones(1, 3), torch.ones(1, 3), mask, ratio="sequence", clip_high=9.0
    )

    assert terms.ratio_BT[0].tolist() == pytest.approx([0.0, math.exp(0.2), math.exp(0.2)], rel=1e-5)


def test_cispo_by_hand():
    # weights 1.28 (of 1.5) and 0.8 (of 0.5) stay in the gradient
    terms, grad = loss_of(
        [math.log(1.5) - 1, math.log(0.5) - 1], [-1.0, -1.0], [2.0, 1.0], ratio="cispo", clip_low=0.2, clip_high=0.28
    )

    assert grad.tolist() == pytest.approx([-1.28 * 2, -0.8 * 1], rel=1e-5)
    assert terms.loss.item() == pytest.approx(-(1.28 * 2 * (math.log(1.5) - 1) + 0.8 * (math.log(0.5) - 1)), rel=1e-5)


@given(LOGPROB, LOGPROB)
def test_k3_is_never_negative_and_zero_only_for_equals(logp, reference):
    kl = float(k3_kl(torch.tensor(logp, dtype=torch.float64), torch.tensor(reference, dtype=torch.float64)))

    assert kl >= -1e-12
    assert kl == pytest.approx(math.exp(reference - logp) - 1 - (reference - logp), abs=1e-9, rel=1e-9)


def test_kl_pulls_towards_the_reference():
    terms, grad = loss_of([-1.0], [-1.0], [0.0], kl_beta=0.5, ref_logp_BT=one_row(-2.0))

    assert float(terms.kl_BT) == pytest.approx(math.exp(-1) - 1 + 1)
    assert terms.loss.item() == pytest.approx(0.5 * math.exp(-1))
    assert grad.tolist() == pytest.approx([0.5 * (1 - math.exp(-1))])  # descending lowers log p towards -2


def test_kl_is_watched_without_a_coefficient_and_needs_a_reference_with_one():
    watched, _ = loss_of([-1.0], [-1.0], [0.0], ref_logp_BT=one_row(-2.0))
    assert watched.loss.item() == 0.0
    assert float(watched.kl_BT) > 0

    with pytest.raises(ValueError, match="reference"):
        loss_of([-1.0], [-1.0], [0.0], kl_beta=0.1)


def test_tis_truncates_from_above_only():
    weights = tis_weights(one_row(-1.0, -1.0, -1.0), one_row(-1.0, -3.0, -0.5), cap=2.0)

    assert weights[0].tolist() == pytest.approx([1.0, 2.0, math.exp(-0.5)])  # e^2 is cut to 2


def test_tis_scales_the_surrogate_and_not_the_kl():
    behaviour, reference = one_row(-0.5), one_row(-2.0)
    terms, grad = loss_of(
        [-1.0], [-1.0], [3.0], behavior_logp_BT=behaviour, tis_cap=2.0, kl_beta=1.0, ref_logp_BT=reference
    )

    weight, kl = math.exp(-0.5), math.exp(-1)
    assert terms.loss.item() == pytest.approx(-(weight * 3.0 - kl), rel=1e-5)
    assert grad.tolist() == pytest.approx([-weight * 3.0 + (1 - kl)], rel=1e-5)


def test_tis_is_one_where_the_engines_logprobs_are_the_old_ones():
    behaviour = one_row(-1.0, -2.0)
    terms, _ = loss_of([-1.5, -1.5], [-1.0, -2.0], [1.0, 1.0], behavior_logp_BT=behaviour, tis_cap=2.0)

    assert terms.tis_weight_BT.tolist() == [[1.0, 1.0]]


def test_a_huge_ratio_stays_finite():
    terms, grad = loss_of([0.0, -900.0], [-900.0, 0.0], [-1.0, 1.0])

    assert torch.isfinite(terms.loss) and torch.isfinite(grad).all()


@pytest.mark.parametrize("poison", [float("nan"), -float("inf"), float("inf")])
@pytest.mark.parametrize("ratio", ["token", "sequence", "cispo"])
def test_masked_tokens_contribute_exactly_nothing(ratio, poison):
    def run(fill):
        def filled(values):
            return torch.where(MASK, values, torch.full_like(values, fill))

        torch.manual_seed(0)
        logp, old, behaviour, reference = (-torch.rand(2, 6) for _ in range(4))
        logp = filled(logp).requires_grad_()
        weights = token_weights(SEGMENTS, MASK, LEARNED, normaliser="segment")
        terms = policy_loss(
            logp,
            filled(old),
            filled(torch.randn(2, 6)),
            filled(weights),
            MASK,
            ratio=ratio,
            behavior_logp_BT=filled(behaviour),
            tis_cap=2.0,
            ref_logp_BT=filled(reference),
            kl_beta=0.1,
        )
        terms.loss.backward()
        return terms, logp.grad

    clean, clean_grad = run(0.0)
    poisoned, grad = run(poison)

    assert torch.equal(poisoned.loss, clean.loss)
    assert torch.equal(grad, clean_grad)
    assert not grad[~MASK].any() and grad[MASK].all()
    for diagnostic in (poisoned.ratio_BT, poisoned.kl_BT, poisoned.tis_weight_BT, poisoned.clipped_low_BT):
        assert not diagnostic[~MASK].any()


@pytest.mark.parametrize("ratio", ["token", "sequence", "cispo"])
@pytest.mark.parametrize(("credited", "other"), [(S, R), (R, S)])
def test_the_reward_of_one_segment_moves_no_token_of_the_other(ratio, credited, other):
    torch.manual_seed(0)
    segment_ids, logp, old = SEGMENTS, (-torch.rand(2, 6)).requires_grad_(), -torch.rand(2, 6)
    advantages = torch.where(segment_ids == credited, 1.5, 0.0)
    weights = token_weights(SEGMENTS, MASK, LEARNED, normaliser="sequence")

    policy_loss(logp, old, advantages, weights, MASK, ratio=ratio, clip_low=0.9, clip_high=9.0).loss.backward()

    assert not logp.grad[segment_ids == other].any()  # exactly
    assert logp.grad[segment_ids == credited].all()


def test_zero_advantage_has_no_gradient():
    _, grad = loss_of([-1.0, -0.2], [-1.5, -0.1], [0.0, 0.0])

    assert grad.tolist() == [0.0, 0.0]


def plain_loss(logp, old, behaviour, reference, advantages, weights, mask, *, kind, low, high, cap, beta):
    """The objective of one batch as loops over Python lists."""
    total = 0.0
    for b in range(len(logp)):
        learned = [t for t in range(len(logp[b])) if mask[b][t]]
        mean_log = sum(logp[b][t] - old[b][t] for t in learned) / max(len(learned), 1)
        for t in learned:
            rho = math.exp(mean_log if kind == "sequence" else logp[b][t] - old[b][t])
            clipped = min(max(rho, 1 - low), 1 + high)
            if kind == "cispo":
                surrogate = clipped * advantages[b][t] * logp[b][t]
            else:
                surrogate = min(rho * advantages[b][t], clipped * advantages[b][t])
            surrogate *= min(math.exp(old[b][t] - behaviour[b][t]), cap)
            away = reference[b][t] - logp[b][t]
            total -= weights[b][t] * (surrogate - beta * (math.exp(away) - away - 1))
    return total


@given(st.integers(0, 10_000), st.sampled_from(["token", "sequence", "cispo"]))
def test_against_plain_loops(seed, kind):
    generator = torch.Generator().manual_seed(seed)
    logp, old, behaviour, reference = (-2 * torch.rand(3, 5, generator=generator) for _ in range(4))
    advantages, weights = torch.randn(3, 5, generator=generator), torch.rand(3, 5, generator=generator)
    mask = torch.rand(3, 5, generator=generator) > 0.4

    terms = policy_loss(
        logp,
        old,
        advantages,
        weights,
        mask,
        ratio=kind,
        clip_low=0.1,
        clip_high=0.3,
        behavior_logp_BT=behaviour,
        tis_cap=1.5,
        ref_logp_BT=reference,
        kl_beta=0.2,
    )

    columns = [column.tolist() for column in (logp, old, behaviour, reference, advantages, weights, mask)]
    expected = plain_loss(*columns, kind=kind, low=0.1, high=0.3, cap=1.5, beta=0.2)
    assert terms.loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_supervised_loss_is_the_weighted_negative_log_likelihood():
    logp = one_row(float("nan"), -1.0, -3.0).requires_grad_()
    loss = supervised_loss(logp, one_row(1.0, 0.5, 0.5), torch.tensor([[False, True, True]]))
    loss.backward()

    assert loss.item() == pytest.approx(2.0)
    assert logp.grad.tolist() == [[0.0, -0.5, -0.5]]


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="normaliser must be one of"):
        token_weights(SEGMENTS, MASK, LEARNED, normaliser="batch")
    with pytest.raises(ValueError, match="ratio must be one of"):
        loss_of([-1.0], [-1.0], [1.0], ratio="ppo")
