"""Log-probs that fit in memory: the output layer scores tokens chunk by chunk and recomputes logits going backward.

Legend: B rows · T tokens of a row · E hidden size · V vocabulary · S scored tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rl.policy.geometry import PackedVideo


@dataclass(frozen=True, slots=True, eq=False)
class Scoring:
    """Ask the model for log-probs of its tokens instead of logits."""

    predictors_S: torch.Tensor  # places, in all rows one after the other, whose hidden states predict the tokens
    targets_S: torch.Tensor  # places of the tokens whose log-probs are wanted
    allowed_V: torch.Tensor  # bool: ids the policy may sample; the others have probability zero
    temperature: float = 1.0
    chunk_tokens: int = 2048  # logits of so many tokens exist at a time


class ScoringHead(nn.Linear):
    """The output layer; scores tokens chunk by chunk in one call and recomputes logits in the backward pass."""

    def forward(
        self, hidden_SE: torch.Tensor, target_ids_S: torch.Tensor | None = None, scoring: Scoring | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Logits; or, with targets, their log-probs (S) and entropies (S, no gradient), both float32, in nats."""
        if target_ids_S is None:
            return super().forward(hidden_SE)
        size = scoring.chunk_tokens
        chunks = zip(hidden_SE.split(size), target_ids_S.split(size), strict=True)
        arguments = (scoring.allowed_V.to(hidden_SE.device), scoring.temperature)
        scores = [checkpoint(self._score, *chunk, *arguments, use_reentrant=False) for chunk in chunks]
        logprobs, entropies = zip(*scores, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)

    def _score(
        self, hidden_SE: torch.Tensor, target_ids_S: torch.Tensor, allowed_V: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits_SV = super().forward(hidden_SE).float() / temperature
        logits_SV = logits_SV.masked_fill(~allowed_V, float("-inf"))
        log_total_S = logits_SV.logsumexp(-1)
        logprob_S = logits_SV.gather(-1, target_ids_S[:, None]).squeeze(-1) - log_total_S
        with torch.no_grad():
            expected_S = (logits_SV.softmax(-1) * logits_SV.masked_fill(~allowed_V, 0.0)).sum(-1)
        return logprob_S, log_total_S.detach() - expected_S


def token_logprobs(
    model: nn.Module,
    input_ids_BT: torch.Tensor,
    attention_mask_BT: torch.Tensor | None,
    position_ids_3BT: torch.Tensor,
    videos: Sequence[PackedVideo],
    *,
    allowed_V: torch.Tensor,
    temperature: float = 1.0,
    scored_BT: torch.Tensor | None = None,
    chunk_tokens: int = 2048,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-prob of every token given those before it, and the entropy of the distribution it was drawn from.

    Of the distribution the engine samples from: logits over temperature, ids not allowed removed, softmax in float32.

    Args:
        model: the policy, or an engine around it that forwards calls.
        scored_BT: bool, tokens that are wanted; None: all but the first of each row and padding and banned ids.
        chunk_tokens: logits of so many tokens exist at a time, in the backward pass too.
    Returns:
        logprobs_BT (with gradient) and entropies_BT (without), float32, nats, zero where not scored.
    """
    if scored_BT is None:
        scored_BT = allowed_V.to(input_ids_BT.device)[input_ids_BT]
        scored_BT = scored_BT if attention_mask_BT is None else scored_BT & attention_mask_BT.bool()
    scored_BT = scored_BT.to(input_ids_BT.device).clone()
    scored_BT[:, 0] = False
    targets_S = scored_BT.flatten().nonzero().squeeze(-1)
    scoring = Scoring(targets_S - 1, targets_S, allowed_V, temperature, chunk_tokens)
    found = model(input_ids_BT, attention_mask_BT, position_ids_3BT, videos, scoring=scoring)
    return placed(found[0], scored_BT), placed(found[1], scored_BT)


def placed(values_S: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
    """Values where `scored` (bool, of any shape) is true, in order; zero elsewhere."""
    return torch.zeros_like(scored, dtype=values_S.dtype).masked_scatter(scored, values_S)
