"""The surrogate objective: pure functions of tensors.

The loss of a step is one sum over all tokens of all sequences, on whatever rank and in whatever micro-batch they are:

    loss = - sum over t of  weight_t * (surrogate_t - beta * kl_t)

`token_weights` settles every denominator beforehand from totals of the whole global batch, so that gradients of
micro-batches and ranks add up (not average) to exactly those of one big batch.

Legend: B sequences of a micro-batch · T tokens, right-padded. Log-probs are natural, each at the token it is of.
Masked tokens (context, padding) contribute exactly nothing, in value and gradient, even where they hold NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rl.algorithm.loss_totals import LossTotals

LOG_RATIO_LIMIT = 20.0  # nat; beyond it exp() would leave float32's useful range, and every clip has long bitten


@dataclass(frozen=True, slots=True)
class LossTerms:
    """The loss of a micro-batch (with gradient), and per-token diagnostics (without; 0 where masked)."""

    loss: Tensor  # scalar; a sum, see above
    ratio_BT: Tensor  # current / old policy
    kl_BT: Tensor  # k3 estimate against the reference, nat; 0 without a reference
    clipped_low_BT: Tensor  # bool: the lower bound took the gradient away (CISPO: capped the weight)
    clipped_high_BT: Tensor
    tis_weight_BT: Tensor  # truncated importance weight old / behaviour; 1 where off


def token_weights(
    segment_ids_BT: Tensor,
    loss_mask_BT: Tensor,
    totals: LossTotals,
    *,
    normaliser: str,
    constant_tokens: int = 128,
) -> Tensor:
    """What each token counts for; with all-one surrogates the loss would be minus one (except for `constant`).

    sequence: the mean over sequences of the mean over a sequence's tokens (SD-GRPO's formula) · token: the mean over
    all tokens of the batch (DAPO) · segment: the mean over sequences of the mean over their segments of the mean over
    a segment's tokens · constant: each sequence's sum divided by a constant, then the mean (Dr.GRPO).

    Raises:
        ValueError: unknown normaliser.
    """
    if normaliser not in NORMALISERS:
        raise ValueError(f"normaliser must be one of {', '.join(NORMALISERS)}, got {normaliser!r}")
    mask_BT = loss_mask_BT.float()
    if normaliser == "token":
        return mask_BT / max(totals.num_tokens, 1)
    if normaliser == "constant":
        return mask_BT / (constant_tokens * max(totals.num_sequences, 1))
    if normaliser == "sequence":
        within_BT = mask_BT / mask_BT.sum(dim=1, keepdim=True).clamp(min=1)
    else:
        within_BT = _segment_means(segment_ids_BT, mask_BT)
    return within_BT / max(totals.num_sequences, 1)


NORMALISERS = ("sequence", "token", "segment", "constant")


def policy_loss(
    logp_BT: Tensor,
    old_logp_BT: Tensor,
    advantages_BT: Tensor,
    weights_BT: Tensor,
    loss_mask_BT: Tensor,
    *,
    ratio: str = "token",
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    behavior_logp_BT: Tensor | None = None,
    tis_cap: float = 0.0,
    ref_logp_BT: Tensor | None = None,
    kl_beta: float = 0.0,
) -> LossTerms:
    """The loss of one micro-batch.

    Args:
        logp_BT: current policy's, with gradient.
        old_logp_BT: of the policy the ratio is taken against: the engine's, or recomputed by the learner.
        weights_BT: from `token_weights`.
        ratio: token (PPO, GRPO) | sequence (GSPO) | cispo.
        behavior_logp_BT: the engine's log-probs.
        tis_cap: of the surrogate's importance weight min(old / behaviour, cap); 0 is off.
        ref_logp_BT: the frozen reference's log-probs; needed where kl_beta > 0.
        kl_beta: weight of the KL to the reference.
    Raises:
        ValueError: unknown ratio, or kl_beta without reference log-probs.
    """
    if ratio not in SURROGATES:
        raise ValueError(f"ratio must be one of {', '.join(SURROGATES)}, got {ratio!r}")
    if kl_beta > 0 and ref_logp_BT is None:
        raise ValueError("kl_beta > 0 needs the reference's log-probs")
    logp_BT, old_logp_BT = _only(logp_BT, loss_mask_BT), _only(old_logp_BT, loss_mask_BT)
    advantages_BT, weights_BT = _only(advantages_BT, loss_mask_BT), _only(weights_BT, loss_mask_BT)
    surrogate_BT, ratio_BT, low_BT, high_BT = SURROGATES[ratio](
        logp_BT, old_logp_BT, advantages_BT, loss_mask_BT, clip_low, clip_high
    )
    tis_BT = loss_mask_BT.float()
    if tis_cap > 0 and behavior_logp_BT is not None:
        tis_BT = tis_BT * tis_weights(old_logp_BT, _only(behavior_logp_BT, loss_mask_BT), tis_cap)
    objective_BT, kl_BT = tis_BT * surrogate_BT, torch.zeros_like(logp_BT)
    if ref_logp_BT is not None:
        kl_BT = k3_kl(logp_BT, _only(ref_logp_BT, loss_mask_BT))
        objective_BT = objective_BT - kl_beta * kl_BT
    return LossTerms(
        loss=-(weights_BT * objective_BT).sum(),
        ratio_BT=ratio_BT.detach() * loss_mask_BT,
        kl_BT=kl_BT.detach(),
        clipped_low_BT=low_BT & loss_mask_BT,
        clipped_high_BT=high_BT & loss_mask_BT,
        tis_weight_BT=tis_BT,
    )


def supervised_loss(logp_BT: Tensor, weights_BT: Tensor, loss_mask_BT: Tensor) -> Tensor:
    """Minus the weighted sum of log-probs: cold start. A sum, to be weighted as above."""
    return -(_only(weights_BT, loss_mask_BT) * _only(logp_BT, loss_mask_BT)).sum()


def clipped_surrogate(
    logp_BT: Tensor, old_logp_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """min(ratio A, clip(ratio, 1 - low, 1 + high) A) per token (PPO; asymmetric bounds: DAPO's clip-higher).

    Returns:
        surrogate_BT, ratio_BT, and where the lower and the upper bound took the gradient away.
    """
    return _clipped(_ratio(logp_BT - old_logp_BT), advantages_BT, clip_low, clip_high)


def gspo_surrogate(
    logp_BT: Tensor, old_logp_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same with the sequence's ratio, exp(mean over its tokens of log ratio) (GSPO, arXiv 2507.18071).

    The token form (GSPO-token): every token holds the sequence's ratio in value, but passes the gradient to its own
    log-prob only, so that a token is moved by its own segment's advantage and by no other.
    """
    log_ratio_BT = (logp_BT - old_logp_BT).detach()
    lengths_B1 = mask_BT.sum(dim=1, keepdim=True).clamp(min=1)
    sequence_B1 = log_ratio_BT.sum(dim=1, keepdim=True) / lengths_B1
    return _clipped(_ratio(sequence_B1 + logp_BT - logp_BT.detach()), advantages_BT, clip_low, clip_high)


def cispo_surrogate(
    logp_BT: Tensor, old_logp_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """sg(clip(ratio)) A log p: the weight is clipped, never the gradient (CISPO, arXiv 2506.13585)."""
    ratio_BT = _ratio(logp_BT - old_logp_BT).detach()
    weight_BT = ratio_BT.clamp(1 - clip_low, 1 + clip_high)
    return weight_BT * advantages_BT * logp_BT, ratio_BT, ratio_BT < 1 - clip_low, ratio_BT > 1 + clip_high


SURROGATES = {"token": clipped_surrogate, "sequence": gspo_surrogate, "cispo": cispo_surrogate}


def k3_kl(logp_BT: Tensor, ref_logp_BT: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(current || reference) per token: exp(d) - 1 - d, d = ref - current; never < 0."""
    difference_BT = (ref_logp_BT - logp_BT).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return torch.expm1(difference_BT) - difference_BT


def tis_weights(old_logp_BT: Tensor, behavior_logp_BT: Tensor, cap: float) -> Tensor:
    """min(old / behaviour, cap), no gradient: corrects for an engine that is not quite the learner, or a stale one."""
    return _ratio(old_logp_BT - behavior_logp_BT).detach().clamp(max=cap)


def _clipped(
    ratio_BT: Tensor, advantages_BT: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    low_BT = (advantages_BT < 0) & (ratio_BT < 1 - clip_low)
    high_BT = (advantages_BT > 0) & (ratio_BT > 1 + clip_high)
    bounded_BT = ratio_BT.masked_fill(low_BT, 1 - clip_low).masked_fill(high_BT, 1 + clip_high)
    return bounded_BT * advantages_BT, ratio_BT, low_BT, high_BT


def _ratio(log_ratio_BT: Tensor) -> Tensor:
    return torch.exp(log_ratio_BT.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))


def _only(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """float32, and 0 where masked: chosen, not multiplied, since 0 * NaN is NaN."""
    return torch.where(mask_BT, values_BT.float(), 0.0)


def _segment_means(segment_ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Weights of the mean over a sequence's segments of the mean over each one's tokens."""
    within_BT, segments_B1 = torch.zeros_like(mask_BT), torch.zeros_like(mask_BT[:, :1])
    for segment in segment_ids_BT.unique():
        here_BT = mask_BT * (segment_ids_BT == segment)
        length_B1 = here_BT.sum(dim=1, keepdim=True)
        within_BT = within_BT + here_BT / length_B1.clamp(min=1)
        segments_B1 = segments_B1 + (length_B1 > 0)
    return within_BT / segments_B1.clamp(min=1)
