"""Pixels to packed patches: what of config.json shapes visual tokens, and frames in the order the vision tower reads.

Legend: T frames · H W pixels · C channels · K scenes · N patches (T * grid_h * grid_w) · D values of a patch
(3 * p * p) · V vocabulary, padded as the model's is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rl.config.policy import ScenesConfig
from rl.policy.families import QWEN2_5_VL, Family, SceneTime, family_in, read_config
from rl.policy.positions import SceneClock
from rl.policy.token_ids import PolicyFilesError
from rl.trajectory import Frames

VOCAB_MULTIPLE = 64  # for the engine


def padded_vocab(tokens: int) -> int:
    """Rows of an embedding for so many tokens."""
    return math.ceil(tokens / VOCAB_MULTIPLE) * VOCAB_MULTIPLE


@dataclass(frozen=True, slots=True, eq=False)
class PackedVideo:
    """A video block as the vision tower reads it: patches in merge order, frame after frame."""

    patches_ND: np.ndarray  # uint8, N = T * grid_h * grid_w, D = (channel, row, column)
    scene_lengths: tuple[int, ...]  # frames of each scene; they sum to T
    grid_h: int  # patches
    grid_w: int
    times_s_K: tuple[float, ...]  # of each scene: its start or middle, as the family has it
    digest: str = ""  # of the frames it was packed from

    @property
    def patches_per_frame(self) -> int:
        """grid_h * grid_w."""
        return self.grid_h * self.grid_w

    @property
    def num_scenes(self) -> int:
        """K."""
        return len(self.scene_lengths)


@dataclass(frozen=True, slots=True)
class Geometry:
    """What of config.json shapes tokens: patch and merge size, clock rate, vocabulary, family."""

    patch: int
    merge: int
    tokens_per_second: float
    vocab_size: int  # V
    family: Family = QWEN2_5_VL

    @classmethod
    def read(cls, folder: Path) -> Geometry:
        """From the folder's config.json, nested, or flat as the hub's Qwen2.5-VL.

        Raises:
            PolicyFilesError: no such file, another family's, or a size or a clock is missing.
        """
        path = folder / "config.json"
        config = read_config(path)
        family = family_in(config, path)
        require_explicit_clock(config, family, path)
        try:
            vision, text = config["vision_config"], config.get("text_config", config)
            patch = vision.get("patch_size", vision.get("spatial_patch_size"))
            rate = vision.get("tokens_per_second", family.tokens_per_second)
            return cls(int(patch), int(vision["spatial_merge_size"]), float(rate), int(text["vocab_size"]), family)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise PolicyFilesError(f"{path}: not a configuration of {family.model_type} ({error!r})") from error

    @property
    def unit(self) -> int:
        """Pixels along each side of a visual token: sides of frames are multiples of it."""
        return self.patch * self.merge

    def fit(self, height: int, width: int, max_pixels: int) -> tuple[int, int]:
        """The size to resize frames to: multiples of patch * merge, nearest in shape and area, at most max_pixels.

        Raises:
            ValueError: an empty frame, or max_pixels below one block.
        """
        unit = self.unit
        if height < 1 or width < 1:
            raise ValueError(f"frames of {height} x {width} pixels cannot be encoded")
        if max_pixels < unit * unit:
            raise ValueError(f"max_pixels must be at least {unit * unit} ({unit} x {unit}), got {max_pixels}")
        rows, columns = max(1, round(height / unit)), max(1, round(width / unit))
        if rows * columns * unit * unit > max_pixels:
            shrink = math.sqrt(height * width / max_pixels)
            rows, columns = (max(1, math.floor(side / shrink / unit)) for side in (height, width))
            most = max_pixels // (unit * unit)
            rows, columns = min(rows, most // columns or 1), min(columns, most // rows or 1)
        return rows * unit, columns * unit

    def pack(self, frames: Frames) -> PackedVideo:
        """Patches in merge order: frame by frame, blocks of merge x merge patches row by row, as in Qwen2.5-VL."""
        patch, merge = self.patch, self.merge
        grid_h, grid_w = frames.height // patch, frames.width // patch
        split = (-1, grid_h // merge, merge, patch, grid_w // merge, merge, patch, 3)
        patches = np.asarray(frames.pixels_THWC).reshape(split).transpose(0, 1, 4, 2, 5, 7, 3, 6)
        patches_ND = np.ascontiguousarray(patches).reshape(-1, 3 * patch * patch)
        return PackedVideo(patches_ND, frames.scene_lengths, grid_h, grid_w, self.scene_times(frames), frames.digest)

    def clock(self, frames: Frames) -> SceneClock:
        """When each scene starts and how many tokens it has."""
        patch = self.patch
        return SceneClock(self.scene_times(frames), frames.height // patch, frames.width // patch, self.merge)

    def scene_times(self, frames: Frames) -> tuple[float, ...]:
        """Seconds of each scene (K): its first frame's, or the mean of its first and its last frame's."""
        ends = np.cumsum(frames.scene_lengths).tolist()
        firsts, times_s_T = [0, *ends[:-1]], frames.timestamps_s_T
        if self.family.scene_time is SceneTime.START:
            return tuple(times_s_T[first] for first in firsts)
        return tuple((times_s_T[first] + times_s_T[end - 1]) / 2 for first, end in zip(firsts, ends, strict=True))


def require_explicit_clock(config: Mapping[str, Any], family: Family, path: Path) -> None:
    """Refuse a config.json whose positions engine and learner would fill in differently.

    Raises:
        PolicyFilesError: names the key.
    """
    vision, text = config.get("vision_config"), config.get("text_config", config)
    if not isinstance(vision, dict) or not isinstance(text, dict):
        raise PolicyFilesError(f"{path}: not a configuration of {family.model_type}: no vision_config")
    if family.tokens_per_second is None and "tokens_per_second" not in vision:
        raise PolicyFilesError(
            f"{path}: vision_config has no tokens_per_second, the rate of the clock; copy it from the original "
            f"checkpoint (2 in {family.on_the_hub})"
        )
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if family.has_interleaved_axes and not (isinstance(rope, dict) and rope.get("mrope_interleaved") is True):
        raise PolicyFilesError(
            f"{path}: text_config.rope_scaling has no mrope_interleaved=true: engine and learner would turn "
            "positions into angles differently; copy rope_scaling from the original checkpoint"
        )


def require_clock(scenes: ScenesConfig, geometry: Geometry, where: str | Path) -> None:
    """Refuse scenes without written times where positions have no clock either.

    Args:
        where: the policy's folder, for the message.
    Raises:
        PolicyFilesError: names the key.
    """
    if scenes.timestamps == "none" and not geometry.tokens_per_second:
        raise PolicyFilesError(
            f"{where}: policy.scenes.timestamps=none leaves {geometry.family.model_type} without a clock, as its "
            "positions have none; set policy.scenes.timestamps=text"
        )
