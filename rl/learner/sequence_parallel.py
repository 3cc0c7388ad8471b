"""One micro-batch over several ranks (Ulysses): each has a part of its tokens, and in attention all of some heads.

Ranks that share samples compute embeddings and visual tokens of the whole row, then every layer for their part of it.
DeepSpeed's attention exchanges tokens for heads before the attention proper and back after it, so that no rank holds
a layer's activations of all tokens (Jacobs et al., DeepSpeed Ulysses, arXiv:2309.14509). A rank scores the tokens that
its part predicts; scores are put together, and every rank takes the same loss, with the gradient of its own scores.

Legend: T tokens of the row · S scored tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from rl.config.errors import ConfigError
from rl.policy.packed_attention import SEQUENCE_PARALLEL, attend_packed


@dataclass(frozen=True, slots=True)
class SequenceParallel:
    """This rank among those that share its samples."""

    size: int = 1
    rank: int = 0
    group: Any = None  # torch.distributed's; None: it is alone

    @property
    def counts(self) -> bool:
        """Whether this is the rank of the group that reports what all of them have."""
        return self.rank == 0

    def part(self, tokens: int) -> slice | None:
        """This rank's part of a row whose length `size` divides; None: all of it."""
        each = tokens // self.size
        return None if self.group is None else slice(self.rank * each, (self.rank + 1) * each)

    def summed(self, values: Tensor) -> Tensor:
        """The sum over the group; the gradient goes to this rank's own values."""
        return values if self.group is None else _Sum.apply(values, self.group)


ALONE = SequenceParallel()


class _Sum(torch.autograd.Function):
    """All ranks take the same loss of the sum, so that each one's share of the gradient is its own summand's."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Any) -> Tensor:
        total = values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def join_sequence_group(size: int, rank: int, world_size: int) -> SequenceParallel:
    """Groups of `size` ranks in a row; collective over all ranks."""
    if size == 1:
        return ALONE
    groups = [dist.new_group(list(range(first, first + size))) for first in range(0, world_size, size)]
    return SequenceParallel(size, rank % size, groups[rank // size])


def attend_in_parallel(model: nn.Module, parallel: SequenceParallel) -> None:
    """Let the language model's attention exchange tokens for heads.

    Raises:
        ConfigError: its heads cannot be dealt to so many ranks.
    """
    if parallel.group is None:
        return
    # here, not above: objective and mini-batches need no DeepSpeed
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

    text = model.config.text_config
    heads, key_heads = text.num_attention_heads, text.num_key_value_heads
    if heads % parallel.size or (key_heads % parallel.size and parallel.size % key_heads):
        raise ConfigError(
            f"learner.sequence_parallel={parallel.size} does not divide the policy's {heads} attention heads and "
            f"{key_heads} key heads: set one that divides both"
        )
    attention = UlyssesSPAttentionHF(
        attend_packed,
        batch_size=1,
        attn_head_count=heads,
        attn_head_size=getattr(text, "head_dim", None) or text.hidden_size // heads,
        kv_head_count=key_heads,
        num_hidden_layers=text.num_hidden_layers,
        process_group=parallel.group,
        seq_length_is_variable=True,
    )
    AttentionInterface.register(SEQUENCE_PARALLEL, attention)
    AttentionMaskInterface.register(SEQUENCE_PARALLEL, sdpa_mask)
    text._attn_implementation = SEQUENCE_PARALLEL
