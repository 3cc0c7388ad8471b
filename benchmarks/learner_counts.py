"""What one trajectory costs a policy of a published size, counted without its weights: the same on every machine.

Operations are those of rl.policy.flops, as every run reports them; calls of attention are counted as the policy makes
them on torch's meta device.

Legend: T tokens · K scenes · N patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from learner_work import Work
from torch import nn
from torch.nn.attention import varlen  # noqa: F401, defines an operator
from torch.overrides import TorchFunctionMode

from rl.policy.flops import VideoShape, Workload, language_flops, tower_flops, training_flops
from rl.policy.model import VideoPolicy
from rl.policy.vision_tower import Grid
from rl.trajectory import Frames

ATTENTION = (nn.functional.scaled_dot_product_attention, torch.ops.torch_attn._varlen_attn)


class SdpaCalls(TorchFunctionMode):
    """Counts calls of scaled_dot_product_attention, and of the one that takes windows of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, and go on."""
        self.count += func in ATTENTION
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True, slots=True)
class TowerCost:
    """One pass of the vision tower over one block, in `fixed` mode."""

    scenes: int  # K
    patches: int  # N: what the tower's blocks read
    tokens: int  # visual ones
    packed_bytes: int  # of pixels, as they travel to the GPU
    sdpa_calls: int
    flops: int


@dataclass(frozen=True, slots=True)
class TrajectoryCost:
    """One trajectory: its two blocks, and the rest of the policy. The tower is frozen but for its mergers."""

    tokens: int  # T
    coarse: TowerCost
    look: TowerCost
    forward_flops: int
    backward_flops: int

    @property
    def flops(self) -> int:
        """Forward and backward."""
        return self.forward_flops + self.backward_flops


def count_trajectory(work: Work) -> TrajectoryCost:
    """Of the trajectories that `Work.group` makes."""
    policy, structure = work.policy("meta"), work.structure()
    (sample,) = work.group(1)
    coarse, look = (count_tower(policy, work, frames) for frames in sample.videos)
    tokens = len(sample.token_ids)
    whole = Workload(tokens, tokens**2, work.sampled, tuple(map(_shape, sample.videos)))
    forward = language_flops(structure.language, whole) + coarse.flops + look.flops
    both = training_flops(structure, whole, freeze_vision=True)
    return TrajectoryCost(tokens, coarse, look, forward, both - forward)


def count_tower(policy: VideoPolicy, work: Work, frames: Frames) -> TowerCost:
    """One forward pass. No window spans scenes.

    Calls are those of two scenes and one, continued: where windows are equal, scenes share a call.
    """
    packed = work.processor().pack(frames)
    grid, scenes = (packed.grid_h, packed.grid_w), packed.num_scenes
    calls, two = (_tower_calls(policy.model.visual, count, *grid) for count in (1, 2))
    return TowerCost(
        scenes,
        scenes * packed.patches_per_frame,
        work.processor().visual_tokens(frames),
        packed.patches_ND.nbytes,
        calls + (scenes - 1) * (two - calls),
        tower_flops(work.structure().tower, _shape(frames)),
    )


def _shape(frames: Frames) -> VideoShape:
    return VideoShape(frames.scene_lengths, frames.height, frames.width)


def _tower_calls(visual: nn.Module, scenes: int, grid_h: int, grid_w: int) -> int:
    patches = scenes * grid_h * grid_w
    embedded_NE = torch.empty(patches, visual.patch_embed.weight.shape[0], dtype=torch.bfloat16, device="meta")
    with torch.no_grad(), SdpaCalls() as calls:
        visual(embedded_NE, [Grid(scenes, grid_h, grid_w)])
    return calls.count
