"""Qwen2.5-VL as the learner's policy: windowed tower, one pair of markers around a video block.

Legend: N patches, or visual tokens · C hidden size of the tower · E of the language model · B sequences · T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLModel,
    Qwen2_5_VLVisionAttention,
    apply_rotary_pos_emb_vision,
)
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from rl.config.policy import ScenesConfig
from rl.policy.configuration import FlexiVideoQwen2_5_VLConfig
from rl.policy.families import QWEN2_5_VL
from rl.policy.patch_embed import make_patch_embed
from rl.policy.policy_folder import scenes_of
from rl.policy.scoring_head import ScoringHead
from rl.policy.video_policy import VideoPolicy
from rl.policy.vision_tower import Features, Grid, SceneTower, VisualTokens
from rl.policy.window_attention import SceneAttention, Windows


class WindowAttention(SceneAttention, Qwen2_5_VLVisionAttention):
    """The tower's attention, within windows and in some blocks within a scene."""

    rotate = staticmethod(apply_rotary_pos_emb_vision)


class WindowedTower(SceneTower, Qwen2_5_VisionTransformerPretrainedModel):
    """The tower: windows of 112 x 112 pixels, cut smaller at the edges; features lie window after window."""

    def __init__(self, vision: Qwen2_5_VLVisionConfig, scenes: ScenesConfig) -> None:
        super().__init__(vision)
        self.patch_embed = make_patch_embed(vision.hidden_size, vision.patch_size, scenes, QWEN2_5_VL)
        for block in self.blocks:
            block.attn = WindowAttention(vision)

    def trunk(self, embedded_NC: Tensor, grids: Sequence[Grid]) -> Features:
        """As SceneTower."""
        device = embedded_NC.device
        window_index, lengths = self._windows(grids)
        within_windows = Windows.of(lengths, device)
        within_scenes = Windows.of([grid.height * grid.width for grid in grids for _ in range(grid.scenes)], device)
        merged, window_index = self.spatial_merge_unit, window_index.to(device)
        places_N2 = get_vision_position_ids(torch.tensor(grids), self.spatial_merge_size).to(device)
        rotary = [angles.unflatten(0, (-1, merged)) for angles in self.rotary_pos_emb(embedded_NC, places_N2)]
        rotary = tuple(angles[window_index].flatten(0, 1) for angles in rotary)
        hidden_NC = embedded_NC.unflatten(0, (-1, merged))[window_index].flatten(0, 1)
        for index, block in enumerate(self.blocks):
            windows = within_scenes if index in self.fullatt_block_indexes else within_windows
            hidden_NC = block(hidden_NC, cu_seqlens=windows, position_embeddings=rotary)
        return (hidden_NC,)

    def merge(self, features: Features, grids: Sequence[Grid]) -> VisualTokens:
        """As SceneTower."""
        (hidden_NC,) = features
        window_index, _ = self._windows(grids)
        return VisualTokens(self.merger(hidden_NC)[window_index.argsort().to(hidden_NC.device)])

    def _windows(self, grids: Sequence[Grid]) -> tuple[Tensor, list[int]]:
        """Which visual token stands at each place when they lie window after window; patches of each window."""
        sizes = (self.spatial_merge_size, self.window_size, self.patch_size)
        window_index, bounds = get_vision_window_index(torch.tensor(grids), *sizes)
        return window_index, bounds.diff().tolist()


class FlexiVideoForConditionalGeneration(VideoPolicy, Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL that reads packed scenes."""

    config_class = FlexiVideoQwen2_5_VLConfig
    tower_class = WindowedTower

    def __init__(self, config: FlexiVideoQwen2_5_VLConfig) -> None:
        super(Qwen2_5_VLForConditionalGeneration, self).__init__(config)
        text = config.text_config
        self.scenes = scenes_of(config)
        self.model = Qwen2_5_VLModel(config)
        self.model.visual = self.tower_class(config.vision_config, self.scenes)
        self.lm_head = ScoringHead(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    def decode(
        self, embeddings_BTE: Tensor, placeholders_BT: Tensor, visual: VisualTokens | None, **inputs: Any
    ) -> Any:
        """As VideoPolicy: visual tokens are told by their embeddings alone."""
        return self.model.language_model(inputs_embeds=embeddings_BTE, **inputs)
