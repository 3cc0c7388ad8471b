"""Adaptive Temporal Encoding: one patch kernel for scenes of any length, resampled along time (FlexiVideo).

Stride equals kernel, so a convolution is one matrix product per scene length: no Conv3d, which is slow or wrong on
some builds. Only `fixed`, the stock two-frame encoder, runs the convolution, as a two-dimensional one over the frame
pair laid out as one tall patch: on CPU in fp32 it gives the stock tower's bits.

Legend: N patches · D values of a patch (3 * p * p) · C output channels · L frames of a scene · T frames of the kernel
P patches of one frame · K scenes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import nn

from rl.config.policy import ScenesConfig
from rl.policy.families import QWEN2_5_VL, Family

STOCK_FRAMES = 2


@lru_cache(maxsize=256)
def interpolation_matrix(length: int, init: int) -> np.ndarray:
    """B (length, init): linear interpolation of `init` samples at `length` places, half-pixel centres.

    Antialiased when length < init: the triangle is widened by init / length. Rows sum to one. Read-only, float64.
    """
    scale = max(init / length, 1.0)
    centres_L = (np.arange(length) + 0.5) * init / length - 0.5
    weights_LT = np.maximum(0.0, 1 - np.abs(np.arange(init) - centres_L[:, None]) / scale)
    weights_LT /= weights_LT.sum(axis=1, keepdims=True)
    weights_LT.setflags(write=False)
    return weights_LT


@lru_cache(maxsize=256)
def resample_matrix(length: int, init: int, unit_gain: bool = False) -> np.ndarray:
    """P = (Bᵀ)⁺ (length, init), which turns a kernel of `init` frames into one of `length` (FlexiViT, along time).

    <u, w> = <B u, P w> for length >= init, and nearest to it in the mean square below. `unit_gain` rescales P so that
    a still scene gets the response of the whole kernel whatever the length. Read-only, float64.

    Raises:
        ValueError: a scene without frames.
    """
    if length < 1:
        raise ValueError(f"a scene has at least one frame, got {length}")
    resample_LT = np.linalg.pinv(interpolation_matrix(length, init).T)
    if unit_gain:
        resample_LT = resample_LT * (init / resample_LT.sum())
    resample_LT.setflags(write=False)
    return resample_LT


def expand_temporal_kernel(stock_C3tpp: torch.Tensor, init: int) -> torch.Tensor:
    """Temporal Expansion Initialization: W[:, :, t] = W_old[:, :, t mod 2] / (init / 2).

    Args:
        stock_C3tpp: (C, 3, 2, p, p), the pretrained two-frame kernel.
        init: frames of the new kernel.
    Returns:
        (C, 3, init, p, p); a still scene gets the response it had.
    Raises:
        ValueError: the kernel is not a two-frame one, or `init` is odd.
    """
    if stock_C3tpp.ndim != 5 or stock_C3tpp.shape[2] != STOCK_FRAMES or init % STOCK_FRAMES:
        raise ValueError(f"cannot expand a kernel of shape {tuple(stock_C3tpp.shape)} to {init} frames")
    repeats = init // STOCK_FRAMES
    return stock_C3tpp.repeat(1, 1, repeats, 1, 1) / repeats


class FlexiPatchEmbed(nn.Module):
    """Embeds the patches of every scene with the kernel resampled to the scene's length.

    Parameters: `weight`, the kernel; and `bias` where the family has one. The bias belongs to the scene: it is neither
    resampled with the kernel nor rescaled by its gain.
    """

    def __init__(
        self,
        channels: int,
        patch: int,
        kernel_frames: int,
        *,
        fixed: bool,
        unit_gain: bool,
        family: Family = QWEN2_5_VL,
    ) -> None:
        """
        Args:
            channels: C.
            patch: side of a patch in pixels.
            kernel_frames: T; 2 in `fixed` mode.
            fixed: stock behaviour: pairs with the kernel as it is, a single last frame repeated.
            unit_gain: see `resample_matrix`.
            family: whose statistics pixels are normalised with, and whether there is a bias.
        """
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 3, kernel_frames, patch, patch))
        self.register_parameter("bias", nn.Parameter(torch.zeros(channels)) if family.has_patch_bias else None)
        self.fixed = fixed
        self.unit_gain = unit_gain
        self.pixel_mean, self.pixel_std = family.pixel_mean, family.pixel_std

    @property
    def proj(self) -> FlexiPatchEmbed:
        """Stock towers ask `patch_embed.proj.weight` for dtype and device."""
        return self

    def forward(
        self,
        patches_ND: torch.Tensor,
        scene_lengths: Sequence[int] | None = None,
        patches_per_frame: int | Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Embed the scenes of one or more videos, frame after frame.

        Args:
            patches_ND: uint8 (normalised here with the family's statistics) or already normalised floats.
            scene_lengths: frames of each of the K scenes. None: the patches are embedded already and pass through,
                which is how the stock towers, whose forward calls this with one argument, are handed our embeddings.
            patches_per_frame: of all scenes, or one number per scene.
        Returns:
            (sum of patches_per_frame over scenes, C) in the kernel's dtype, scene after scene.
        Raises:
            ValueError: lengths and patches do not fit.
        """
        if scene_lengths is None:
            return patches_ND
        per_scene = _per_scene(scene_lengths, patches_per_frame)
        counts = [length * patches for length, patches in zip(scene_lengths, per_scene, strict=True)]
        if sum(counts) != len(patches_ND):
            raise ValueError(f"scenes hold {sum(counts)} patches, got {len(patches_ND)}")
        scenes = patches_ND.split(counts)
        by_length: dict[int, list[int]] = {}
        for k, length in enumerate(scene_lengths):
            by_length.setdefault(int(length), []).append(k)
        embedded, order = [], []
        for length, members in by_length.items():
            frames_NLD = torch.cat([scenes[k].view(length, per_scene[k], -1).transpose(0, 1) for k in members])
            embedded += self._embed(frames_NLD).split([per_scene[k] for k in members])
            order += members
        in_order = sorted(zip(order, embedded, strict=True), key=lambda pair: pair[0])
        return torch.cat([scene_PC for _, scene_PC in in_order])

    def _embed(self, frames_NLD: torch.Tensor) -> torch.Tensor:
        normalised_NLD = self._normalise(frames_NLD)
        if self.fixed:
            return self._embed_pairs(normalised_NLD)
        channels, _, kernel_frames, patch, _ = self.weight.shape
        length = frames_NLD.shape[1]
        resample = resample_matrix(length, kernel_frames, self.unit_gain)
        resample_LT = torch.tensor(resample, dtype=torch.float32, device=self.weight.device)
        kernel_TX = self.weight.permute(2, 1, 3, 4, 0).reshape(kernel_frames, -1)
        kernel_LX = (resample_LT @ kernel_TX.float()).to(self.weight.dtype)
        embedded_NC = normalised_NLD.flatten(1) @ kernel_LX.view(length * 3 * patch * patch, channels)
        return embedded_NC if self.bias is None else embedded_NC + self.bias

    def _embed_pairs(self, frames_NLD: torch.Tensor) -> torch.Tensor:
        channels, _, kernel_frames, patch, _ = self.weight.shape
        if frames_NLD.shape[1] > kernel_frames:
            raise ValueError(f"fixed mode encodes {kernel_frames} frames at a time, got {frames_NLD.shape[1]}")
        pairs_NLD = frames_NLD.expand(-1, kernel_frames, -1) if frames_NLD.shape[1] == 1 else frames_NLD
        pairs_N3Lpp = pairs_NLD.reshape(-1, kernel_frames, 3, patch, patch).transpose(1, 2)
        tall = pairs_N3Lpp.reshape(-1, 3, kernel_frames * patch, patch)
        kernel = self.weight.reshape(channels, 3, kernel_frames * patch, patch)
        return nn.functional.conv2d(tall, kernel, self.bias, stride=patch).view(-1, channels)

    def _normalise(self, frames_NLD: torch.Tensor) -> torch.Tensor:
        if frames_NLD.dtype != torch.uint8:
            return frames_NLD.to(self.weight.dtype)
        shape = frames_NLD.shape
        statistics = (self.pixel_mean, self.pixel_std)
        mean_3, std_3 = (torch.tensor(values, device=frames_NLD.device)[:, None] for values in statistics)
        frames_NL3X = frames_NLD.reshape(*shape[:2], 3, -1).float().mul_(1 / 255)  # in place: pixels are many
        return frames_NL3X.sub_(mean_3).div_(std_3).view(shape).to(self.weight.dtype)


def _per_scene(scene_lengths: Sequence[int], patches_per_frame: int | Sequence[int] | None) -> list[int]:
    if patches_per_frame is None:
        raise ValueError("patches_per_frame is needed beside scene_lengths")
    if isinstance(patches_per_frame, int):
        return [patches_per_frame] * len(scene_lengths)
    return [int(patches) for patches in patches_per_frame]


def make_patch_embed(channels: int, patch: int, scenes: ScenesConfig, family: Family = QWEN2_5_VL) -> FlexiPatchEmbed:
    """The patch embedding for scene parameters: stock kernel in `fixed` mode, expanded otherwise."""
    fixed = scenes.mode == "fixed"
    frames = STOCK_FRAMES if fixed else scenes.init_frames
    return FlexiPatchEmbed(channels, patch, frames, fixed=fixed, unit_gain=scenes.unit_gain, family=family)
