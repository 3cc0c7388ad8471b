"""The learner's vision tower: a stock one with FlexiVideo's patch embedding and equal windows in one call.

Legend: N patches, or visual tokens · D values of a patch · E hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from rl.policy.geometry import PackedVideo


@dataclass(frozen=True, slots=True)
class VisualTokens:
    """What a tower makes of videos, placeholder by placeholder."""

    embeddings_NE: torch.Tensor  # in place of the placeholders' embeddings
    levels: tuple[torch.Tensor, ...] = field(
        default=()
    )  # (N, E) each: added after the first language layers (DeepStack)

    def sum(self) -> torch.Tensor:
        """Of everything, so that a graph may hang on all of it."""
        return self.embeddings_NE.sum() + sum(level_NE.sum() for level_NE in self.levels)

    def to(self, dtype: torch.dtype) -> VisualTokens:
        """In another type."""
        return VisualTokens(self.embeddings_NE.to(dtype), tuple(level_NE.to(dtype) for level_NE in self.levels))

    def taken(self, sizes: Sequence[int], order: Sequence[int]) -> VisualTokens:
        """Cut into pieces of these sizes, and pieces put together in this order; they may repeat."""

        def take(tokens_NE: torch.Tensor) -> torch.Tensor:
            pieces = tokens_NE.split(list(sizes))
            return torch.cat([pieces[place] for place in order])

        return VisualTokens(take(self.embeddings_NE), tuple(map(take, self.levels)))


def run_tower(visual: nn.Module, videos: Sequence[PackedVideo]) -> Any:
    """The output of one pass through a tower of ours over all scenes of all videos."""
    device = visual.patch_embed.weight.device
    patches_ND = torch.from_numpy(np.concatenate([video.patches_ND for video in videos])).to(device)
    lengths = [length for video in videos for length in video.scene_lengths]
    patches_per_frame = [video.patches_per_frame for video in videos for _ in video.scene_lengths]
    grids = torch.tensor([(video.num_scenes, video.grid_h, video.grid_w) for video in videos], device=device)
    embedded = visual.patch_embed(patches_ND, lengths, patches_per_frame)
    return visual(embedded, grid_thw=grids)


def attend_in_one_call(
    attention: nn.Module,
    hidden_NE: torch.Tensor,
    cu_seqlens: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    rotate: Callable[..., tuple[torch.Tensor, torch.Tensor]],
) -> torch.Tensor | None:
    """A tower's attention over windows of equal length, which stock attends to one after the other.

    Args:
        cu_seqlens: the windows' bounds.
        position_embeddings: rotary (cos, sin).
        rotate: the family's rotary function.
    Returns:
        (N, E); None where windows differ in length or attention is not SDPA: stock's own way has to be taken.
    """
    lengths = cu_seqlens.diff()
    if attention.config._attn_implementation != "sdpa" or bool((lengths != lengths[0]).any()):
        return None
    qkv = attention.qkv(hidden_NE).reshape(len(hidden_NE), 3, attention.num_heads, -1)
    query, key = rotate(qkv[:, 0], qkv[:, 1], *position_embeddings)
    windows = (part.unflatten(0, (len(lengths), -1)).transpose(1, 2) for part in (query, key, qkv[:, 2]))
    attended = nn.functional.scaled_dot_product_attention(*windows, scale=attention.scaling)
    return attention.proj(attended.transpose(1, 2).reshape(len(hidden_NE), -1))
