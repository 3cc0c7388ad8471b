"""What one trajectory costs a policy of a published size, counted without its weights: the same on every machine.

The policy stands on torch's meta device and torch's FlopCounterMode counts: a multiply with its addition is two,
attention is counted in full although it is causal, what is done element by element is not counted. Recomputed
activations are no part of it: these are the operations that the model needs, as MFU asks for.

Legend: T tokens · E hidden size · K scenes · N patches · S scored tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from learner_work import Work
from torch import nn
from torch.nn.attention import varlen  # noqa: F401, defines an operator
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from rl.policy.model import VideoPolicy, freeze_vision
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
    policy = work.policy("meta")
    freeze_vision(policy)
    (sample,) = work.group(1)
    coarse, look = (count_tower(policy, work, frames) for frames in sample.videos)
    forward, backward = _count_language(policy, len(sample.token_ids), work.sampled)
    return TrajectoryCost(len(sample.token_ids), coarse, look, forward + coarse.flops + look.flops, backward)


def count_tower(policy: VideoPolicy, work: Work, frames: Frames) -> TowerCost:
    """One forward pass. No window spans scenes, so that all scenes cost what one does, call by call.

    Calls are those of two scenes and one, continued: where windows are equal, scenes share a call.
    """
    packed = work.processor().pack(frames)
    grid, scenes = (packed.grid_h, packed.grid_w), packed.num_scenes
    calls, flops = _tower_pass(policy.model.visual, 1, *grid)
    two, _ = _tower_pass(policy.model.visual, 2, *grid)
    embed = policy.model.visual.patch_embed.weight.numel() * 2 * scenes * packed.patches_per_frame
    return TowerCost(
        scenes,
        scenes * packed.patches_per_frame,
        work.processor().visual_tokens(frames),
        packed.patches_ND.nbytes,
        calls + (scenes - 1) * (two - calls),
        embed + scenes * flops,
    )


def _tower_pass(visual: nn.Module, scenes: int, grid_h: int, grid_w: int) -> tuple[int, int]:
    patches = scenes * grid_h * grid_w
    embedded_NE = torch.empty(patches, visual.patch_embed.weight.shape[0], dtype=torch.bfloat16, device="meta")
    with torch.no_grad(), SdpaCalls() as calls, FlopCounterMode(display=False) as counter:
        visual(embedded_NE, [Grid(scenes, grid_h, grid_w)])
    return calls.count, counter.get_total_flops()


def _count_language(policy: VideoPolicy, tokens: int, sampled: int) -> tuple[int, int]:
    """Language model over a whole trajectory and head over its sampled tokens, forward and backward."""
    hidden = policy.config.text_config.hidden_size
    embedded_1TE = torch.empty(1, tokens, hidden, dtype=torch.bfloat16, device="meta", requires_grad=True)
    positions_31T = torch.empty(3, 1, tokens, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        hidden_1TE = policy.model.language_model(
            inputs_embeds=embedded_1TE, position_ids=positions_31T, attention_mask=None, use_cache=False
        ).last_hidden_state
        logits_SV = nn.functional.linear(hidden_1TE[0, :sampled], policy.lm_head.weight)
    forward = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        logits_SV.backward(torch.empty_like(logits_SV))
    return forward, counter.get_total_flops()
