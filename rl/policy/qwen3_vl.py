"""Qwen3-VL as the learner's policy: a pair of markers around every scene, a bias per scene, and DeepStack.

DeepStack: the tower's early blocks give visual tokens of their own, which are added to the hidden states of the video's
placeholders after the first layers of the language model. A scene is what stock calls a frame pair: the tower attends
within it and not across.

Legend: N visual tokens · E hidden size · B sequences · T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLModel,
    Qwen3VLVisionAttention,
    Qwen3VLVisionModel,
    apply_rotary_pos_emb_vision,
)

from rl.config.policy import ScenesConfig
from rl.policy.configuration import FlexiVideoQwen3VLConfig
from rl.policy.families import QWEN3_VL
from rl.policy.geometry import PackedVideo
from rl.policy.patch_embed import make_patch_embed
from rl.policy.policy_folder import scenes_of
from rl.policy.scoring_head import ScoringHead
from rl.policy.video_policy import VideoPolicy
from rl.policy.vision_tower import VisualTokens, attend_in_one_call, run_tower


class SceneAttention(Qwen3VLVisionAttention):
    """The tower's attention, scenes with equally many patches in one call."""

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
        if found is not None:
            return found
        return super().forward(hidden_states, cu_seqlens, position_embeddings=position_embeddings, **kwargs)


class FlexiVideoQwen3VLForConditionalGeneration(VideoPolicy, Qwen3VLForConditionalGeneration):
    """Qwen3-VL that reads packed scenes."""

    config_class = FlexiVideoQwen3VLConfig

    def __init__(self, config: FlexiVideoQwen3VLConfig) -> None:
        super(Qwen3VLForConditionalGeneration, self).__init__(config)
        text = config.text_config
        self.scenes = scenes_of(config)
        self.model = Qwen3VLModel(config)
        make_flexible(self.model.visual, config.vision_config, self.scenes)
        self.lm_head = ScoringHead(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    def encode_videos(self, videos: Sequence[PackedVideo]) -> VisualTokens:
        """As VideoPolicy; its levels are DeepStack's."""
        output = run_tower(self.model.visual, videos)
        return VisualTokens(output.pooler_output, tuple(output.deepstack_features))

    def decode(
        self, embeddings_BTE: torch.Tensor, placeholders_BT: torch.Tensor, visual: VisualTokens | None, **inputs: Any
    ) -> Any:
        """As VideoPolicy: DeepStack's levels go to the language model beside the embeddings."""
        return self.model.language_model(
            inputs_embeds=embeddings_BTE,
            visual_pos_masks=placeholders_BT if visual is not None else None,
            deepstack_visual_embeds=list(visual.levels) if visual is not None else None,
            **inputs,
        )


def make_tower(vision: Qwen3VLVisionConfig, scenes: ScenesConfig) -> Qwen3VLVisionModel:
    """A tower of ours by itself."""
    visual = Qwen3VLVisionModel(vision)
    make_flexible(visual, vision, scenes)
    return visual


def make_flexible(visual: Qwen3VLVisionModel, vision: Qwen3VLVisionConfig, scenes: ScenesConfig) -> None:
    """Put our patch embedding and scene attention into a stock tower."""
    visual.patch_embed = make_patch_embed(vision.hidden_size, vision.patch_size, scenes, QWEN3_VL)
    for block in visual.blocks:
        block.attn = SceneAttention(vision)
