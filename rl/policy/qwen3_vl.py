"""Qwen3-VL as the learner's policy: a pair of markers around every scene, a bias per scene, and DeepStack.

DeepStack: the tower's early blocks give visual tokens of their own, which are added to the hidden states of the video's
placeholders after the first layers of the language model. A scene is what stock calls a frame pair: the tower attends
within it and not across.

Legend: N patches, or visual tokens · C hidden size of the tower · E of the language model · B sequences · T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLModel,
    Qwen3VLVisionAttention,
    Qwen3VLVisionModel,
    apply_rotary_pos_emb_vision,
)
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

from rl.config.policy import ScenesConfig
from rl.policy.configuration import FlexiVideoQwen3VLConfig
from rl.policy.families import QWEN3_VL
from rl.policy.patch_embed import make_patch_embed
from rl.policy.policy_folder import scenes_of
from rl.policy.scoring_head import ScoringHead
from rl.policy.video_policy import VideoPolicy
from rl.policy.vision_tower import Features, Grid, SceneTower, VisualTokens
from rl.policy.window_attention import SceneAttention, Windows


class Qwen3SceneAttention(SceneAttention, Qwen3VLVisionAttention):
    """The tower's attention, within a scene."""

    rotate = staticmethod(apply_rotary_pos_emb_vision)


class DeepStackTower(SceneTower, Qwen3VLVisionModel):
    """The tower: learned positions, and features of early blocks beside those of the last one."""

    def __init__(self, vision: Qwen3VLVisionConfig, scenes: ScenesConfig) -> None:
        super().__init__(vision)
        self.patch_embed = make_patch_embed(vision.hidden_size, vision.patch_size, scenes, QWEN3_VL)
        for block in self.blocks:
            block.attn = Qwen3SceneAttention(vision)
        self.num_features = 1 + len(self.deepstack_visual_indexes)

    def trunk(self, embedded_NC: Tensor, grids: Sequence[Grid]) -> Features:
        """As SceneTower."""
        device, grids_K3 = embedded_NC.device, torch.tensor(grids)
        windows = Windows.of([grid.height * grid.width for grid in grids for _ in range(grid.scenes)], device)
        hidden_NC = embedded_NC + self._learned_positions(grids_K3, device).to(embedded_NC.dtype)
        places_N2 = get_vision_position_ids(grids_K3, self.spatial_merge_size).to(device)
        rotary, early = self.rotary_pos_emb(hidden_NC, places_N2), []
        for index, block in enumerate(self.blocks):
            hidden_NC = block(hidden_NC, cu_seqlens=windows, position_embeddings=rotary)
            if index in self.deepstack_visual_indexes:
                early.append(hidden_NC)
        return (hidden_NC, *early)

    def merge(self, features: Features, grids: Sequence[Grid]) -> VisualTokens:
        """As SceneTower."""
        hidden_NC, *early = features
        levels = zip(self.deepstack_merger_list, early, strict=True)
        return VisualTokens(self.merger(hidden_NC), tuple(merger(early_NC) for merger, early_NC in levels))

    def _learned_positions(self, grids_K3: Tensor, device: torch.device) -> Tensor:
        """(N, C): the table's values, interpolated to each video's grid."""
        indices_N4, weights_N4 = get_vision_interpolation_indices_and_weights(
            grids_K3,
            num_grid_per_side=self.num_grid_per_side,
            mode=self.interpolation_mode,
            align_corners=self.interpolation_align_corners,
            spatial_merge_size=self.spatial_merge_size,
        )
        return (self.pos_embed(indices_N4.to(device)) * weights_N4.to(device)[:, :, None]).sum(1)


class FlexiVideoQwen3VLForConditionalGeneration(VideoPolicy, Qwen3VLForConditionalGeneration):
    """Qwen3-VL that reads packed scenes."""

    config_class = FlexiVideoQwen3VLConfig
    tower_class = DeepStackTower

    def __init__(self, config: FlexiVideoQwen3VLConfig) -> None:
        super(Qwen3VLForConditionalGeneration, self).__init__(config)
        text = config.text_config
        self.scenes = scenes_of(config)
        self.model = Qwen3VLModel(config)
        self.model.visual = self.tower_class(config.vision_config, self.scenes)
        self.lm_head = ScoringHead(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    def decode(
        self, embeddings_BTE: Tensor, placeholders_BT: Tensor, visual: VisualTokens | None, **inputs: Any
    ) -> Any:
        """As VideoPolicy: DeepStack's levels go to the language model beside the embeddings."""
        return self.model.language_model(
            inputs_embeds=embeddings_BTE,
            visual_pos_masks=placeholders_BT if visual is not None else None,
            deepstack_visual_embeds=list(visual.levels) if visual is not None else None,
            **inputs,
        )
