"""The learner's vision tower: a stock one with FlexiVideo's patch embedding, in two parts.

The trunk (patch embedding and blocks) makes features of patches; the mergers make visual tokens of them. With
`learner.freeze_vision` the trunk never changes and the mergers learn.

Legend: N patches, or visual tokens · D values of a patch · C hidden size of the tower · E of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rl.policy.geometry import PackedVideo


@dataclass(frozen=True, slots=True)
class VisualTokens:
    """What a tower makes of videos, placeholder by placeholder."""

    embeddings_NE: Tensor  # in place of the placeholders' embeddings
    levels: tuple[Tensor, ...] = field(default=())  # (N, E) each: added after the first language layers (DeepStack)

    def sum(self) -> Tensor:
        """Of everything, so that a graph may hang on all of it."""
        return self.embeddings_NE.sum() + sum(level_NE.sum() for level_NE in self.levels)

    def to(self, dtype: torch.dtype) -> VisualTokens:
        """In another type."""
        return VisualTokens(self.embeddings_NE.to(dtype), tuple(level_NE.to(dtype) for level_NE in self.levels))

    def between(self, first: int, end: int) -> VisualTokens:
        """Some of them, in a row."""
        return VisualTokens(self.embeddings_NE[first:end], tuple(level_NE[first:end] for level_NE in self.levels))

    def taken(self, sizes: Sequence[int], order: Sequence[int]) -> VisualTokens:
        """Cut into pieces of these sizes, and pieces put together in this order; they may repeat."""

        def take(tokens_NE: Tensor) -> Tensor:
            pieces = tokens_NE.split(list(sizes))
            return torch.cat([pieces[place] for place in order])

        return VisualTokens(take(self.embeddings_NE), tuple(map(take, self.levels)))


class Grid(NamedTuple):
    """Patches of a video."""

    scenes: int
    height: int  # patches of a scene
    width: int


Features = tuple[Tensor, ...]  # (N, C) each: after the last block, and after those that DeepStack's mergers read


class SceneTower(nn.Module):
    """What stands before a family's stock tower, which says how patches become features, and these visual tokens."""

    def trunk(self, embedded_NC: Tensor, grids: Sequence[Grid]) -> Features:
        """Features of embedded patches, in the order in which the mergers read them."""
        raise NotImplementedError

    def merge(self, features: Features, grids: Sequence[Grid]) -> VisualTokens:
        """Visual tokens of features, video after video as the placeholders stand."""
        raise NotImplementedError

    def forward(self, embedded_NC: Tensor, grids: Sequence[Grid]) -> tuple[Tensor, ...]:
        """Both: embeddings, then levels, as bare tensors, on which ZeRO 3 hangs its hooks."""
        tokens = self.merge(self.trunk(embedded_NC, grids), grids)
        return tokens.embeddings_NE, *tokens.levels


def run_tower(visual: SceneTower, videos: Sequence[PackedVideo]) -> VisualTokens:
    """One pass through a tower of ours over all scenes of all videos."""
    embeddings_NE, *levels = visual(embed(visual, videos), list(map(grid_of, videos)))
    return VisualTokens(embeddings_NE, tuple(levels))


def embed(visual: SceneTower, videos: Sequence[PackedVideo]) -> Tensor:
    """Embedded patches (N, C) of all scenes of all videos."""
    device = visual.patch_embed.weight.device
    # from pinned memory, as the learner packs them for a GPU, the copies run beside what the CPU does next
    sent = [torch.from_numpy(video.patches_ND).to(device, non_blocking=True) for video in videos]
    lengths = [length for video in videos for length in video.scene_lengths]
    patches_per_frame = [video.patches_per_frame for video in videos for _ in video.scene_lengths]
    return visual.patch_embed(torch.cat(sent), lengths, patches_per_frame)


def grid_of(video: PackedVideo) -> Grid:
    """The patches that blocks and mergers see of it."""
    return Grid(video.num_scenes, video.grid_h, video.grid_w)
