"""What a video block costs in the vision tower: tokens and floating-point operations, counted from integers alone.

No weights and no torch: the price of a 3 B policy's encoder can be told on a machine that could not load it. A multiply
with its addition counts as two operations, as everywhere; what is done element by element (norms, activations, rotary
positions, softmax) is not counted, as in torch's own counter, with which a test compares these formulas exactly.

Legend: K scenes · l_k frames of scene k · P patches of one frame · N = K * P patches in the tower · E hidden size ·
I intermediate size · T frames of the patch kernel · p side of a patch · m side of a merged block.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl.config.policy import ScenesConfig
from rl.policy.scenes import PAIR_FRAMES
from rl.policy.token_ids import PolicyFilesError

COLOURS = 3
QWEN2_5_VL_3B: Mapping[str, Any] = {  # vision_config of Qwen/Qwen2.5-VL-3B-Instruct
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 2048,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": PAIR_FRAMES,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "tokens_per_second": 2,
}


@dataclass(frozen=True, slots=True)
class VisionGeometry:
    """What of a vision tower's configuration decides its cost."""

    patch: int  # p, pixels
    merge: int  # m, patches
    window: int  # pixels: side of an attention window
    hidden: int  # E
    intermediate: int  # I
    out_hidden: int  # of the language model
    depth: int  # blocks
    full_attention_blocks: int  # of them, those that attend to a whole frame

    @classmethod
    def of(cls, vision: Mapping[str, Any]) -> VisionGeometry:
        """From a `vision_config` section.

        Raises:
            PolicyFilesError: a size is missing or not a whole number above 0.
        """
        try:
            full = vision["fullatt_block_indexes"]
            sizes = {
                "patch": vision.get("patch_size", vision.get("spatial_patch_size", 14)),
                "merge": vision.get("spatial_merge_size", 2),
                "window": vision.get("window_size", 112),
                "hidden": vision["hidden_size"],
                "intermediate": vision["intermediate_size"],
                "out_hidden": vision["out_hidden_size"],
                "depth": vision["depth"],
            }
        except (KeyError, TypeError, AttributeError) as error:
            raise PolicyFilesError(f"not the vision_config of a Qwen2.5-VL ({error!r})") from error
        wrong = {name: size for name, size in sizes.items() if not (type(size) is int and size > 0)}
        if wrong:
            raise PolicyFilesError(f"vision_config: sizes must be whole numbers above 0, got {wrong}")
        if sizes["window"] < sizes["patch"] * sizes["merge"]:
            raise PolicyFilesError(f"vision_config: a window of {sizes['window']} pixels holds no merged block")
        return cls(**sizes, full_attention_blocks=len(set(full) & set(range(sizes["depth"]))))

    @property
    def parameters(self) -> int:
        """Weights of the tower with the stock two-frame kernel."""
        hidden, merged = self.hidden, self.hidden * self.merge**2
        attention = 4 * hidden * hidden + 4 * hidden
        mlp = 3 * hidden * self.intermediate + 2 * self.intermediate + hidden
        merger = hidden + merged * (merged + 1) + (merged + 1) * self.out_hidden
        return PAIR_FRAMES * self._frame_values * hidden + self.depth * (attention + mlp + 2 * hidden) + merger

    @property
    def _frame_values(self) -> int:
        """Numbers in one patch of one frame: 3 * p * p."""
        return COLOURS * self.patch**2

    def window_sides(self, grid: int) -> list[int]:
        """Sides, in patches, of the windows that cover `grid` patches in a row; the last may be cut off."""
        blocks, span = grid // self.merge, self.window // self.merge // self.patch
        return [self.merge * min(span, blocks - start) for start in range(0, blocks, span)]


@dataclass(frozen=True, slots=True)
class EncodeFlops:
    """Floating-point operations of one forward pass over a block, by part."""

    patch_embed: int  # kernels resampled to the scenes' lengths, included
    projections: int  # qkv and output of every block
    windowed_attention: int
    full_attention: int
    mlp: int
    merger: int

    @property
    def total(self) -> int:
        """Of all parts."""
        return (
            self.patch_embed + self.projections + self.windowed_attention + self.full_attention + self.mlp + self.merger
        )


def encode_flops(
    geometry: VisionGeometry, scenes: ScenesConfig, scene_lengths: Sequence[int], grid_h: int, grid_w: int
) -> EncodeFlops:
    """Count the operations of encoding one block.

    - patch embedding: sum over scenes of 2 P (3 p² l_k) E, one matrix product per length, and 2 l T (3 p² E) once per
      distinct length l for its kernel. `fixed`: every scene is a pair, the stock kernel is taken as it is.
    - each block: 2 N E 3E and 2 N E E for the projections, 6 N E I for the gated MLP, and 4 E n² for each window of n
      patches. A window never spans scenes: full attention is within the frame's grid, n = P.
    - merger: N / m² rows through (m² E)² and m² E out_hidden.

    Args:
        scene_lengths: frames of each scene, in order.
        grid_h, grid_w: patches of a frame; multiples of the merge size.
    Raises:
        ValueError: no scene, a scene without frames, or a grid that the merger cannot divide.
    """
    if not scene_lengths or min(scene_lengths) < 1:
        raise ValueError(f"scenes must have frames, got lengths {tuple(scene_lengths)}")
    if min(grid_h, grid_w) < 1 or grid_h % geometry.merge or grid_w % geometry.merge:
        raise ValueError(f"a grid must be of multiples of {geometry.merge} patches, got {grid_h} x {grid_w}")
    hidden, merged = geometry.hidden, geometry.hidden * geometry.merge**2
    per_frame = grid_h * grid_w
    patches = len(scene_lengths) * per_frame
    window_squares = len(scene_lengths) * _squares(geometry, grid_h) * _squares(geometry, grid_w)
    full_squares = len(scene_lengths) * per_frame**2
    windowed_blocks = geometry.depth - geometry.full_attention_blocks
    return EncodeFlops(
        patch_embed=_patch_embed_flops(geometry, scenes, scene_lengths, per_frame),
        projections=geometry.depth * 2 * patches * 4 * hidden * hidden,
        windowed_attention=windowed_blocks * 4 * hidden * window_squares,
        full_attention=geometry.full_attention_blocks * 4 * hidden * full_squares,
        mlp=geometry.depth * 6 * patches * hidden * geometry.intermediate,
        merger=2 * (patches // geometry.merge**2) * merged * (merged + geometry.out_hidden),
    )


def kpixel_per_tflop(num_frames: int, height: int, width: int, flops: int) -> float:
    """Thousand pixels of encoded frames that 10^12 operations pay for: more is cheaper."""
    return num_frames * height * width / 1e3 / (flops / 1e12)


def read_vision_config(folder: str | Path) -> dict[str, Any]:
    """The `vision_config` of a checkpoint's config.json.

    Raises:
        PolicyFilesError: no such file, or it has none.
    """
    path = Path(folder) / "config.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["vision_config"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise PolicyFilesError(f"{path}: no configuration with a vision_config ({error!r})") from error


def _patch_embed_flops(
    geometry: VisionGeometry, scenes: ScenesConfig, scene_lengths: Sequence[int], per_frame: int
) -> int:
    values = geometry._frame_values * geometry.hidden  # of the kernel, per frame
    if scenes.mode == "fixed":
        return len(scene_lengths) * 2 * per_frame * PAIR_FRAMES * values
    kernels = sum(2 * length * scenes.init_frames * values for length in set(scene_lengths))
    return kernels + 2 * per_frame * sum(scene_lengths) * values


def _squares(geometry: VisionGeometry, grid: int) -> int:
    """Sum of squared window sides along one axis: windows are products of sides, so are the sums of their squares."""
    return sum(side**2 for side in geometry.window_sides(grid))
