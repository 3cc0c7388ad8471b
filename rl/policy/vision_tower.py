"""The learner's vision tower: a stock one with FlexiVideo's patch embedding, in two parts.

The trunk (patch embedding and blocks) makes features of patches; the mergers make visual tokens of them. With
`learner.freeze_vision` the trunk never changes and the mergers learn.

Legend: N patches, or visual tokens · D values of a patch · C hidden size of the tower · E of the language model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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

    def mapped(self, change: Callable[[Tensor], Tensor]) -> VisualTokens:
        """Embeddings and every level, changed."""
        return VisualTokens(change(self.embeddings_NE), tuple(map(change, self.levels)))

    def to(self, dtype: torch.dtype) -> VisualTokens:
        """In another type."""
        return self.mapped(lambda tokens_NE: tokens_NE.to(dtype))

    def between(self, first: int, end: int) -> VisualTokens:
        """Some of them, in a row."""
        return VisualTokens(self.embeddings_NE[first:end], tuple(level_NE[first:end] for level_NE in self.levels))

    def split(self, sizes: Sequence[int]) -> list[VisualTokens]:
        """Cut into pieces of these sizes."""
        embeddings, *levels = (tokens_NE.split(list(sizes)) for tokens_NE in (self.embeddings_NE, *self.levels))
        return [VisualTokens(piece, tuple(rest)) for piece, *rest in zip(embeddings, *levels, strict=True)]

    @classmethod
    def joined(cls, pieces: Sequence[VisualTokens]) -> VisualTokens:
        """One after the other."""
        levels = zip(*(piece.levels for piece in pieces), strict=True)
        return cls(torch.cat([piece.embeddings_NE for piece in pieces]), tuple(map(torch.cat, levels)))

    def dot(self, other: VisualTokens) -> Tensor:
        """Sum of products, in the other's type."""
        pairs = zip((self.embeddings_NE, *self.levels), (other.embeddings_NE, *other.levels), strict=True)
        return sum((mine_NE.to(its_NE.dtype) * its_NE).sum() for mine_NE, its_NE in pairs)


class Grid(NamedTuple):
    """Patches of a video."""

    scenes: int
    height: int  # patches of a scene
    width: int


TRUNK = ("patch_embed", "pos_embed", "blocks")
Features = tuple[Tensor, ...]  # (N, C) each: after the last block, and after those that DeepStack's mergers read


@dataclass(frozen=True, slots=True)
class Encoded:
    """What of the videos of a pass has been encoded before it."""

    features: Mapping[PackedVideo, Features] | None = None  # of all of them: only the mergers run
    tokens: Mapping[str, VisualTokens] = field(default_factory=dict)  # of some, by their digests: the tower's own


NOTHING = Encoded()


class SceneTower(nn.Module):
    """What stands before a family's stock tower, which says how patches become features, and these visual tokens."""

    main_input_name = "embedded_NC"  # transformers hooks embeddings of what it takes for a language model
    num_features = 1  # tensors that the trunk makes

    def trunk(self, embedded_NC: Tensor, grids: Sequence[Grid]) -> Features:
        """Features of embedded patches, in the order in which the mergers read them."""
        raise NotImplementedError

    def merge(self, features: Features, grids: Sequence[Grid]) -> VisualTokens:
        """Visual tokens of features, video after video as the placeholders stand."""
        raise NotImplementedError

    def trunk_parts(self) -> Iterator[tuple[str, nn.Module]]:
        """What is not a merger: the modules that `learner.freeze_vision` freezes."""
        return ((name, part) for name, part in self.named_children() if name in TRUNK)

    def forward(self, embedded_NC: Tensor, grids: Sequence[Grid]) -> tuple[Tensor, ...]:
        """Both: embeddings, then levels, as bare tensors, on which ZeRO 3 hangs its hooks."""
        tokens = self.merge(self.trunk(embedded_NC, grids), grids)
        return tokens.embeddings_NE, *tokens.levels


def run_tower(visual: SceneTower, videos: Sequence[PackedVideo]) -> VisualTokens:
    """One pass through a tower of ours over all scenes of all videos."""
    embeddings_NE, *levels = visual(embed(visual, videos), list(map(grid_of, videos)))
    return VisualTokens(embeddings_NE, tuple(levels))


def run_trunk(visual: SceneTower, video: PackedVideo) -> Features:
    """Of one video by itself."""
    return visual.trunk(embed(visual, [video]), [grid_of(video)])


def merge_features(
    visual: SceneTower, videos: Sequence[PackedVideo], features: Mapping[PackedVideo, Features]
) -> VisualTokens:
    """One pass through the mergers over all videos, from the features of each."""
    together = tuple(torch.cat(parts) for parts in zip(*(features[video] for video in videos), strict=True))
    return visual.merge(together, list(map(grid_of, videos)))


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
