"""Qwen2.5-VL as the learner's policy: windowed tower, one pair of markers around a video block.

Legend: N visual tokens · E hidden size · B sequences · T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLModel,
    Qwen2_5_VLVisionAttention,
    apply_rotary_pos_emb_vision,
)

from rl.config.policy import ScenesConfig
from rl.policy.configuration import FlexiVideoQwen2_5_VLConfig
from rl.policy.families import QWEN2_5_VL
from rl.policy.geometry import PackedVideo
from rl.policy.patch_embed import make_patch_embed
from rl.policy.policy_folder import scenes_of
from rl.policy.scoring_head import ScoringHead
from rl.policy.video_policy import VideoPolicy
from rl.policy.vision_tower import VisualTokens, attend_in_one_call, run_tower


class WindowAttention(Qwen2_5_VLVisionAttention):
    """The tower's attention, windows of equal length in one call: a small frame is one window."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: object,
    ) -> torch.Tensor:
        """(N, E) in, (N, E) out; see `attend_in_one_call`."""
        rotate = apply_rotary_pos_emb_vision
        found = attend_in_one_call(self, hidden_states, cu_seqlens, position_embeddings, rotate)
        return super().forward(hidden_states, cu_seqlens, position_embeddings, **kwargs) if found is None else found


class FlexiVideoForConditionalGeneration(VideoPolicy, Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL that reads packed scenes."""

    config_class = FlexiVideoQwen2_5_VLConfig

    def __init__(self, config: FlexiVideoQwen2_5_VLConfig) -> None:
        super(Qwen2_5_VLForConditionalGeneration, self).__init__(config)
        text = config.text_config
        self.scenes = scenes_of(config)
        self.model = Qwen2_5_VLModel(config)
        make_flexible(self.model.visual, config.vision_config, self.scenes)
        self.lm_head = ScoringHead(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    def encode_videos(self, videos: Sequence[PackedVideo]) -> VisualTokens:
        """As VideoPolicy."""
        return VisualTokens(run_tower(self.model.visual, videos).pooler_output)

    def decode(
        self, embeddings_BTE: torch.Tensor, placeholders_BT: torch.Tensor, visual: VisualTokens | None, **inputs: Any
    ) -> Any:
        """As VideoPolicy: visual tokens are told by their embeddings alone."""
        return self.model.language_model(inputs_embeds=embeddings_BTE, **inputs)


def make_tower(vision: Qwen2_5_VLVisionConfig, scenes: ScenesConfig) -> Qwen2_5_VisionTransformerPretrainedModel:
    """A tower of ours by itself."""
    visual = Qwen2_5_VisionTransformerPretrainedModel(vision)
    make_flexible(visual, vision, scenes)
    return visual


def make_flexible(
    visual: Qwen2_5_VisionTransformerPretrainedModel, vision: Qwen2_5_VLVisionConfig, scenes: ScenesConfig
) -> None:
    """Put our patch embedding and window attention into a stock tower."""
    visual.patch_embed = make_patch_embed(vision.hidden_size, vision.patch_size, scenes, QWEN2_5_VL)
    for block in visual.blocks:
        block.attn = WindowAttention(vision)
