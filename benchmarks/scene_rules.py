"""What cutting a block of frames into scenes costs by each rule, in CPU time per frame.

    OMP_NUM_THREADS=1 python benchmarks/scene_rules.py [--frames 32] [--height 420] [--width 224] [--repeats 5]

A block whose camera shakes, so that every rule has work to do. Features are those of the first block of towers of the
published sizes, with random weights: their cost does not depend on values. The rules in turn, so that a busy machine
slows all of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tables import median_and_range, print_conditions, print_table

from rl.config.policy import ScenesConfig
from rl.encode_stats.vision_config import QWEN2_5_VL_3B, QWEN3_VL_4B
from rl.policy.families import QWEN2_5_VL, QWEN3_VL, Family
from rl.policy.feature_file import feature_shape
from rl.policy.scene_features import SceneFeatures
from rl.policy.scenes import segment_scenes

RULES = {
    "pixels, literal": ScenesConfig(budget="none"),
    "pixels, adaptive": ScenesConfig(budget="none", threshold="adaptive"),
    "pixels at 1/4, within pairs": ScenesConfig(difference_scale=4),
}
TOWERS = {"Qwen2.5-VL-3B": (QWEN2_5_VL, QWEN2_5_VL_3B), "Qwen3-VL-4B": (QWEN3_VL, QWEN3_VL_4B)}
FEATURES = ScenesConfig(budget="none", difference="features")


def main() -> None:
    """A row per rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--height", type=int, default=420)
    parser.add_argument("--width", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print_conditions("numpy", "numba", repeats=options.repeats)
    cuts = {name: _by_pixels(scenes, options) for name, scenes in RULES.items()}
    cuts |= {f"features, {name}": _by_features(*tower, options) for name, tower in TOWERS.items()}
    for cut in cuts.values():
        cut()  # compiles
    ms: dict[str, list[float]] = {name: [] for name in cuts}
    for _ in range(options.repeats):
        for name, cut in cuts.items():
            start = time.process_time()
            cut()
            ms[name].append((time.process_time() - start) / options.frames * 1000)
    literal = ms["pixels, literal"]
    print_table(
        ("rule", "CPU ms / frame", "x the literal rule"),
        (
            (name, median_and_range(values, ".3g"), f"{float(np.median(values) / np.median(literal)):.3g}")
            for name, values in ms.items()
        ),
    )


def _by_pixels(scenes: ScenesConfig, options: argparse.Namespace) -> Callable[[], object]:
    frames_THWC = _shaken(options.frames, options.height, options.width)
    return lambda: segment_scenes(frames_THWC, scenes)


def _by_features(family: Family, vision: Mapping[str, Any], options: argparse.Namespace) -> Callable[[], object]:
    unit = vision["patch_size"] * vision["spatial_merge_size"]
    height, width = (max(1, round(side / unit)) * unit for side in (options.height, options.width))
    frames_THWC = _shaken(options.frames, height, width)
    features = SceneFeatures(feature_shape(vision, family), _random_weights(family, vision), "")
    return lambda: segment_scenes(frames_THWC, FEATURES, features)


def _shaken(num_frames: int, height: int, width: int) -> np.ndarray:
    """A picture of noise, blurred by repetition, moved by up to two pixels in every frame."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (height // 4 + 2, width // 4 + 2, 3), dtype=np.uint8)
    picture = coarse.repeat(4, axis=0).repeat(4, axis=1)
    places = random.integers(0, 5, (num_frames, 2))
    return np.stack([picture[top : top + height, left : left + width] for top, left in places])


def _random_weights(family: Family, vision: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Patch embedding and first block under the names of the feature file."""
    random = np.random.default_rng(0)
    hidden, inner = vision["hidden_size"], vision["intermediate_size"]
    shapes = {"kernel": (3 * vision["patch_size"] ** 2, hidden), "norm1.weight": (hidden,), "norm2.weight": (hidden,)}
    linears = {"attn.qkv": (3 * hidden, hidden), "attn.proj": (hidden, hidden)}
    if family is QWEN2_5_VL:
        linears |= {"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
    else:
        linears |= {"mlp.linear_fc1": (inner, hidden), "mlp.linear_fc2": (hidden, inner)}
        shapes |= {"bias": (hidden,), "positions": (vision["num_position_embeddings"], hidden)}
        shapes |= {"norm1.bias": (hidden,), "norm2.bias": (hidden,)}
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return {name: random.normal(0, 0.02, shape).astype(np.float32) for name, shape in shapes.items()}


if __name__ == "__main__":
    main()
