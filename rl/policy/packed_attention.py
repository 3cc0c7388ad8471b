"""Attention over packed rows (rl.policy.packing): no padded token, no mask of T x T, no copy of shared keys.

On CPUs a branch's tokens attend to the shared keys and to their own in two calls of torch's flash kernel, whose outputs
are put together by their log-sum-exps. Its backward kernel, given the output and the log-sum-exp over all keys, gives
the exact gradient of the part of the keys it is shown (Dao et al., FlashAttention, arXiv:2205.14135, appendix B), so
that gradients of the shared keys add up over branches. On CUDA the same rule is the block mask of flex attention.

Legend: T tokens of a row · H heads · D size of a head · K keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rl.policy.packing import Packing, Tree, owners, sees, starts

PACKED = "packed"  # the name transformers knows it by
SEQUENCE_PARALLEL = "packed_sequence_parallel"  # of the same over several ranks (rl.learner.sequence_parallel)

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attend_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True, slots=True)
class _Part:
    """Tokens that attend to keys in one call of a kernel."""

    queries: slice
    keys: slice
    is_causal: bool


class PackedAttention(torch.autograd.Function):
    """Attention of every token of a row to what it may see; CPU."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing, scale: float
    ) -> torch.Tensor:
        """(1, H, T, D), (1, K heads, T, D) twice -> (1, H, T, D); heads of keys divide those of queries."""
        output = torch.empty_like(query)
        logsumexp = query.new_empty(query.shape[:3], dtype=torch.float32)
        for tree, start in zip(packing, starts(packing), strict=True):
            for part in _own_parts(tree, start):
                _write(output, logsumexp, part, *_call(query, key, value, part, scale))
            if (part := _shared_part(tree, start)) is not None:
                _merge(output, logsumexp, part, *_call(query, key, value, part, scale))
        ctx.save_for_backward(query, key, value, output, logsumexp)
        ctx.packing, ctx.scale = packing, scale
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of query, key and value."""
        query, key, value, output, logsumexp = ctx.saved_tensors
        grads = tuple(torch.zeros_like(tensor) for tensor in (query, key, value))
        for tree, start in zip(ctx.packing, starts(ctx.packing), strict=True):
            shared = _shared_part(tree, start)
            for part in (*_own_parts(tree, start), *(() if shared is None else (shared,))):
                at_queries, at_keys = (..., part.queries, slice(None)), (..., part.keys, slice(None))
                found = _attend_backward(
                    grad_output[at_queries],
                    query[at_queries],
                    key[at_keys],
                    value[at_keys],
                    output[at_queries],
                    logsumexp[..., part.queries],
                    0.0,
                    part.is_causal,
                    scale=ctx.scale,
                )
                for grad, add, place in zip(grads, found, (at_queries, at_keys, at_keys), strict=True):
                    grad[place] += add
        return (*grads, None, None)


def attend_packed(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    packing: Packing | BlockMask | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers; without a packing, its SDPA.

    Args:
        packing: as `prepare_packing` gives it.
    """
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if isinstance(packing, BlockMask):
        output, _ = flex_attention_forward(module, query, key, value, packing, scaling=scaling)
        return output, None
    attended = PackedAttention.apply(
        query, key, value, packing, query.shape[-1] ** -0.5 if scaling is None else scaling
    )
    return attended.transpose(1, 2).contiguous(), None


def prepare_packing(packing: Packing, device: torch.device) -> Packing | BlockMask:
    """What the attention of all layers needs of a row's packing on a device."""
    return packing if device.type == "cpu" else block_mask(packing, device)


def block_mask(packing: Packing, device: torch.device | str) -> BlockMask:
    """The rule of rl.policy.packing as flex attention takes it."""
    tree_T, branch_T = owners(packing, device)

    def rule(batch: Any, head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (query >= key) & sees(tree_T[query], branch_T[query], tree_T[key], branch_T[key])

    tokens = len(tree_T)
    # compiled, blocks are found without a mask of T x T
    return create_block_mask(rule, None, None, tokens, tokens, device=device, _compile=tree_T.is_cuda)


def _own_parts(tree: Tree, start: int) -> Iterator[_Part]:
    """The shared tokens among themselves, and each branch's."""
    for length in (tree.shared, *tree.branches):
        if length:
            yield _Part(slice(start, start + length), slice(start, start + length), is_causal=True)
        start += length


def _shared_part(tree: Tree, start: int) -> _Part | None:
    """The tokens of all branches, which see every shared one."""
    if not tree.shared or not sum(tree.branches):
        return None
    end = start + tree.shared
    return _Part(slice(end, start + tree.tokens), slice(start, end), is_causal=False)


def _call(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, part: _Part, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    keys = (..., part.keys, slice(None))
    return _attend(query[..., part.queries, :], key[keys], value[keys], 0.0, part.is_causal, scale=scale)


def _write(
    output: torch.Tensor, logsumexp: torch.Tensor, part: _Part, found: torch.Tensor, found_logsumexp: torch.Tensor
) -> None:
    output[..., part.queries, :], logsumexp[..., part.queries] = found, found_logsumexp


def _merge(
    output: torch.Tensor, logsumexp: torch.Tensor, part: _Part, found: torch.Tensor, found_logsumexp: torch.Tensor
) -> None:
    """Put together what tokens attended to before and what they attend to now."""
    before, rows = logsumexp[..., part.queries], (..., part.queries, slice(None))
    together = torch.logaddexp(before, found_logsumexp)
    kept, added = (before - together).exp()[..., None], (found_logsumexp - together).exp()[..., None]
    output[rows] = (output[rows] * kept + found * added).to(output.dtype)
    logsumexp[..., part.queries] = together


def register() -> None:
    """Make `attn_implementation="packed"` known to transformers."""
    AttentionInterface.register(PACKED, attend_packed)
    AttentionMaskInterface.register(PACKED, sdpa_mask)


register()
