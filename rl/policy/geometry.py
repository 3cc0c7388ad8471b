"""Pixels to packed patches: what of config.json shapes visual tokens, and frames in the order the vision tower reads.

Legend: T frames · H W pixels · C channels · K scenes · N patches (T * grid_h * grid_w) · D values of a patch
(3 * p * p) · V vocabulary, padded as the model's is.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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
    start_s_K: tuple[float, ...]  # presentation time of each scene's first frame

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
    """What of config.json shapes tokens: patch and merge size, clock rate, vocabulary."""

    patch: int
    merge: int
    tokens_per_second: float
    vocab_size: int  # V

    @classmethod
    def read(cls, folder: Path) -> Geometry:
        """From the folder's config.json, nested (transformers 5) or flat (the hub's Qwen2.5-VL).

        Raises:
            PolicyFilesError: no such file, or not a Qwen2.5-VL configuration.
        """
        path = folder / "config.json"
        try:
            config = json.loads(path.read_text())
            vision, text = config["vision_config"], config.get("text_config", config)
            patch = vision.get("patch_size", vision.get("spatial_patch_size", 14))
            tokens_per_second = vision.get("tokens_per_second", 4)
            return cls(patch, vision.get("spatial_merge_size", 2), tokens_per_second, text["vocab_size"])
        except (OSError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise PolicyFilesError(f"{path}: not a Qwen2.5-VL configuration ({error!r})") from error

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
        return PackedVideo(patches_ND, frames.scene_lengths, grid_h, grid_w, _scene_starts(frames))

    def clock(self, frames: Frames) -> SceneClock:
        """When each scene starts and how many tokens it has."""
        patch = self.patch
        return SceneClock(_scene_starts(frames), frames.height // patch, frames.width // patch, self.merge)


def _scene_starts(frames: Frames) -> tuple[float, ...]:
    starts = np.cumsum((0, *frames.scene_lengths[:-1]))
    return tuple(frames.timestamps_s_T[first] for first in starts)
