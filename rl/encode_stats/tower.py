"""The vision tower of `dynframe encode-stats`: run on clips, or counted on torch's meta device.

On the meta device a tensor has a shape and no numbers: the cost of a 3 B policy's encoder can be told on a machine that
could not load it. Operations are counted by torch's FlopCounterMode: a multiply with its addition is two, what is done
element by element (norms, activations, rotary positions, softmax) is not counted.

Legend: K scenes · P patches of one frame · D values of a patch · E hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig
from transformers import initialization as init

from rl.config.policy import ScenesConfig
from rl.encode_stats.peak_memory import PeakMemory
from rl.encode_stats.vision_config import VisionGeometry
from rl.policy.configuration import configuration_class
from rl.policy.families import QWEN2_5_VL, Family
from rl.policy.model import policy_class
from rl.policy.patch_embed import make_patch_embed
from rl.policy.vision_tower import Grid, run_tower


class Tower:
    """A vision tower of random weights and one patch embedding per mode, each of which fits its scenes."""

    def __init__(self, geometry: VisionGeometry, modes: Mapping[str, ScenesConfig]) -> None:
        """
        Args:
            modes: names and scene parameters.
        """
        torch.manual_seed(0)
        torch.set_num_threads(1)
        config = tower_config(geometry)
        self._visual = make_vision_tower(config, next(iter(modes.values())), geometry.family)
        self._embeds = _patch_embeds(geometry, config, modes)
        for embed in self._embeds.values():
            torch.nn.init.normal_(embed.weight, std=config.initializer_range)

    def encode(self, mode: str, packed: Any) -> None:
        """One pass over a packed block."""
        self._visual.patch_embed = self._embeds[mode]
        with torch.inference_mode():
            run_tower(self._visual, [packed])

    def peak_bytes(self, mode: str, packed: Any) -> int:
        """The most bytes of tensors alive during one pass, the block's patches included, weights not."""
        self._visual.patch_embed = self._embeds[mode]
        with PeakMemory([*self._visual.parameters(), *self._visual.buffers()]) as memory:
            self.encode(mode, packed)
        return memory.peak_bytes


class FlopCounter:
    """Counts what encoding costs in a tower on the meta device, without weights.

    Attention never spans scenes, so that a block of K scenes costs K times what one scene does, but for the patch
    embedding, whose kernels are resampled to the scenes' lengths.
    """

    def __init__(self, geometry: VisionGeometry, modes: Mapping[str, ScenesConfig]) -> None:
        """
        Args:
            modes: names and scene parameters.
        """
        self._config = tower_config(geometry)
        with torch.device("meta"):
            self._visual = make_vision_tower(self._config, ScenesConfig(mode="fixed"), geometry.family)
            self._embeds = _patch_embeds(geometry, self._config, modes)
        self.parameters = sum(weight.numel() for weight in self._visual.parameters())  # with the stock kernel
        self._of_one_scene: dict[tuple[int, int], int] = {}  # (grid_h, grid_w) -> operations

    def count(self, mode: str, scene_lengths: Sequence[int], grid_h: int, grid_w: int) -> int:
        """Floating-point operations of one forward pass over a block.

        Args:
            scene_lengths: frames of each scene, in order.
            grid_h, grid_w: patches of a frame; multiples of the merge size.
        Raises:
            ValueError: no scene, a scene without frames, or a grid that the merger cannot divide.
        """
        merge = self._config.spatial_merge_size
        if not scene_lengths or min(scene_lengths) < 1:
            raise ValueError(f"scenes must have frames, got lengths {tuple(scene_lengths)}")
        if min(grid_h, grid_w) < 1 or grid_h % merge or grid_w % merge:
            raise ValueError(f"a grid must be of multiples of {merge} patches, got {grid_h} x {grid_w}")
        if (grid_h, grid_w) not in self._of_one_scene:
            self._of_one_scene[grid_h, grid_w] = self._count_one_scene(grid_h, grid_w)
        embedding = self._count_embedding(mode, scene_lengths, grid_h * grid_w)
        return embedding + len(scene_lengths) * self._of_one_scene[grid_h, grid_w]

    def _count_embedding(self, mode: str, scene_lengths: Sequence[int], patches_per_frame: int) -> int:
        values = 3 * self._config.patch_size**2
        patches_ND = torch.empty(
            sum(scene_lengths) * patches_per_frame, values, dtype=torch.uint8, device="meta"
        )  # as PackedVideo has them
        with FlopCounterMode(display=False) as counter:
            self._embeds[mode](patches_ND, scene_lengths, patches_per_frame)
        return counter.get_total_flops()

    def _count_one_scene(self, grid_h: int, grid_w: int) -> int:
        patches = grid_h * grid_w
        embedded_PE = torch.empty(patches, self._config.hidden_size, device="meta")
        with FlopCounterMode(display=False) as counter:
            self._visual(embedded_PE, [Grid(1, grid_h, grid_w)])
        return counter.get_total_flops()


def tower_config(geometry: VisionGeometry) -> PreTrainedConfig:
    """transformers' configuration of the tower alone."""
    return configuration_class(geometry.family)(vision_config=dict(geometry.vision)).vision_config


def make_vision_tower(vision: PreTrainedConfig, scenes: ScenesConfig, family: Family = QWEN2_5_VL) -> nn.Module:
    """A vision tower of ours without its language model, with random weights: for measuring what encoding costs."""
    vision = copy.deepcopy(vision)
    vision._attn_implementation = "sdpa"
    visual = policy_class(family).tower_class(vision, scenes)
    init.normal_(visual.patch_embed.weight, std=vision.initializer_range)
    return visual.eval().requires_grad_(False)


def _patch_embeds(
    geometry: VisionGeometry, config: PreTrainedConfig, modes: Mapping[str, ScenesConfig]
) -> dict[str, torch.nn.Module]:
    sizes = (config.hidden_size, config.patch_size)
    return {
        mode: make_patch_embed(*sizes, scenes, geometry.family).requires_grad_(False) for mode, scenes in modes.items()
    }
