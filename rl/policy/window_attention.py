"""Attention of the vision towers: patches attend within their window, all windows of a block in a few calls.

Stock attends to one window after the other: 26,000 calls a pass at real frame sizes. Here windows of equal length share
a call of scaled_dot_product_attention; on GPUs that run FlashAttention all of them share one. A window's sums are added
in the order of stock, so that on CPU in float32 the bits are stock's.

Legend: N patches · H heads · D values of a head · E hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

FLASH_TYPES = (torch.float16, torch.bfloat16)
FLASH_CAPABILITY = (8, 0)  # of the GPU, at least
FLASH_HEAD = 8  # a head's values are a multiple of it


@dataclass(frozen=True, slots=True)
class Windows:
    """How one pass of a tower is cut into windows; made once, used by all its blocks.

    Windows.of([64, 16, 64], device) puts the patches of both windows of 64 side by side, those of the other one behind.
    """

    counts: tuple[tuple[int, int], ...]  # (patches of a window, number of such windows), as they lie when arranged
    bounds: Tensor  # int32: where each window begins in the order given, and the last one's end
    order_N: Tensor | None  # which patch stands at each place when arranged; None: windows lie as they were given
    places_N: Tensor | None  # the other way round

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Windows:
        """Of the windows' lengths, in the order of their patches.

        Args:
            device: where the patches are.
        """
        members: dict[int, list[int]] = {}
        for window, length in enumerate(lengths):
            members.setdefault(length, []).append(window)
        counts = tuple((length, len(windows)) for length, windows in members.items())
        starts = [0, *accumulate(lengths)]
        bounds = torch.tensor(starts, dtype=torch.int32, device=device)
        if len(members) == 1:
            return cls(counts, bounds, None, None)
        order_N = torch.cat(
            [
                (torch.tensor([starts[window] for window in windows])[:, None] + torch.arange(length)).flatten()
                for length, windows in members.items()
            ]
        )
        return cls(counts, bounds, order_N.to(device), order_N.argsort().to(device))

    @property
    def longest(self) -> int:
        """Patches of the longest window."""
        return max(length for length, _ in self.counts)


def attend(query_NHD: Tensor, key_NHD: Tensor, value_NHD: Tensor, windows: Windows, scale: float) -> Tensor:
    """Softmax attention within each window; (N, H, D), in the order given."""
    if runs_flash(query_NHD):
        bounds, longest = windows.bounds, windows.longest
        return varlen_attn(query_NHD, key_NHD, value_NHD, bounds, bounds, longest, longest, scale=scale)
    parts = [_taken(part, windows.order_N, windows.places_N) for part in (query_NHD, key_NHD, value_NHD)]
    attended, first = [], 0
    for length, count in windows.counts:
        last = first + length * count
        in_windows = (part[first:last].unflatten(0, (count, length)).transpose(1, 2) for part in parts)
        attended.append(scaled_dot_product_attention(*in_windows, scale=scale).transpose(1, 2).flatten(0, 1))
        first = last
    arranged_NHD = torch.cat(attended) if len(attended) > 1 else attended[0]
    return _taken(arranged_NHD, windows.places_N, windows.order_N)


def runs_flash(query_NHD: Tensor) -> bool:
    """Whether one call can take windows of any lengths: FlashAttention's conditions on GPU, type and heads."""
    return (
        query_NHD.is_cuda
        and query_NHD.dtype in FLASH_TYPES
        and query_NHD.shape[-1] % FLASH_HEAD == 0
        and torch.cuda.get_device_capability(query_NHD.device) >= FLASH_CAPABILITY
        and torch.backends.cuda.is_flash_attention_available()
    )


class SceneAttention(nn.Module):
    """What stands before a family's stock attention: its layers, attended to by `attend`."""

    rotate: ClassVar[Callable[..., tuple[Tensor, Tensor]]]  # the family's rotary function

    def forward(
        self, hidden_states: Tensor, cu_seqlens: Windows, position_embeddings: tuple[Tensor, Tensor], **_: Any
    ) -> Tensor:
        """(N, E) in, (N, E) out.

        Args:
            cu_seqlens: the windows; stock's blocks hand on what they are given under this name.
            position_embeddings: rotary (cos, sin).
        """
        qkv_N3HD = self.qkv(hidden_states).reshape(len(hidden_states), 3, self.num_heads, -1)
        query_NHD, key_NHD = self.rotate(qkv_N3HD[:, 0], qkv_N3HD[:, 1], *position_embeddings)
        attended_NHD = attend(query_NHD, key_NHD, qkv_N3HD[:, 2], cu_seqlens, self.scaling)
        return self.proj(attended_NHD.flatten(1))


class _Taken(torch.autograd.Function):
    """Rows in another order. Each is taken once, so that gradients are taken back and need not be added."""

    @staticmethod
    def forward(context: Any, rows_N: Tensor, order_N: Tensor, places_N: Tensor) -> Tensor:
        context.places_N, context.order_N = places_N, order_N
        return rows_N.index_select(0, order_N)

    @staticmethod
    def backward(context: Any, gradient_N: Tensor) -> tuple[Tensor, None, None]:
        return gradient_N.index_select(0, context.places_N), None, None


def _taken(rows_N: Tensor, order_N: Tensor | None, places_N: Tensor | None) -> Tensor:
    return rows_N if order_N is None else _Taken.apply(rows_N, order_N, places_N)
