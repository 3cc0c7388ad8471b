"""The learner's vision tower: stock Qwen2.5-VL with FlexiVideo's patch embedding and windows in one call.

Legend: N patches · D values of a patch · E hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from transformers import initialization as init
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLVisionAttention,
    apply_rotary_pos_emb_vision,
)

from rl.config.policy import ScenesConfig
from rl.policy.geometry import PackedVideo
from rl.policy.patch_embed import make_patch_embed


class WindowAttention(Qwen2_5_VLVisionAttention):
    """The vision tower's attention, windows of equal length in one call: stock attends to one window after the other,
    and a small frame is one window."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: object,
    ) -> torch.Tensor:
        """(N, E) in, (N, E) out; `cu_seqlens` are the windows' bounds, `position_embeddings` rotary (cos, sin)."""
        lengths = cu_seqlens.diff()
        if self.config._attn_implementation != "sdpa" or bool((lengths != lengths[0]).any()):
            return super().forward(hidden_states, cu_seqlens, position_embeddings, **kwargs)
        qkv = self.qkv(hidden_states).reshape(len(hidden_states), 3, self.num_heads, -1)
        query, key = apply_rotary_pos_emb_vision(qkv[:, 0], qkv[:, 1], *position_embeddings)
        windows = (part.unflatten(0, (len(lengths), -1)).transpose(1, 2) for part in (query, key, qkv[:, 2]))
        attended = nn.functional.scaled_dot_product_attention(*windows, scale=self.scaling)
        return self.proj(attended.transpose(1, 2).reshape(len(hidden_states), -1))


def encode_videos(visual: Qwen2_5_VisionTransformerPretrainedModel, videos: Sequence[PackedVideo]) -> torch.Tensor:
    """Embeddings (tokens, E) of the videos' placeholders, in order: one pass through a tower of ours."""
    device = visual.patch_embed.weight.device
    patches_ND = torch.from_numpy(np.concatenate([video.patches_ND for video in videos])).to(device)
    lengths = [length for video in videos for length in video.scene_lengths]
    patches_per_frame = [video.patches_per_frame for video in videos for _ in video.scene_lengths]
    grids = torch.tensor([(video.num_scenes, video.grid_h, video.grid_w) for video in videos], device=device)
    embedded = visual.patch_embed(patches_ND, lengths, patches_per_frame)
    return visual(embedded, grid_thw=grids).pooler_output


def make_vision_tower(vision: Qwen2_5_VLVisionConfig, scenes: ScenesConfig) -> Qwen2_5_VisionTransformerPretrainedModel:
    """A vision tower of ours without its language model, with random weights: for measuring what encoding costs."""
    vision = copy.deepcopy(vision)
    vision._attn_implementation = "sdpa"
    visual = Qwen2_5_VisionTransformerPretrainedModel(vision)
    make_flexible(visual, vision, scenes)
    init.normal_(visual.patch_embed.weight, std=vision.initializer_range)
    return visual.eval().requires_grad_(False)


def make_flexible(
    visual: Qwen2_5_VisionTransformerPretrainedModel, vision: Qwen2_5_VLVisionConfig, scenes: ScenesConfig
) -> None:
    """Put our patch embedding and window attention into a stock tower."""
    visual.patch_embed = make_patch_embed(vision.hidden_size, vision.patch_size, scenes)
    for block in visual.blocks:
        block.attn = WindowAttention(vision)
