"""The file by which frames are compared with `policy.scenes.difference: features`, taken from a policy's weights.

Legend: as rl.policy.scene_features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from rl.policy.families import Family, family_of, read_config
from rl.policy.patch_embed import resample_matrix
from rl.policy.scene_features import FEATURE_FILE, FeatureShape
from rl.policy.weight_files import read_weights

TOWER = "model.visual."
BLOCK = f"{TOWER}blocks.0."


def write_features(source: str | Path, folder: str | Path | None = None) -> Path:
    """Freeze patch embedding and first block of the policy in `source` as the feature file of `folder`.

    Args:
        source: a policy folder of ours, whose kernel is expanded (`mode: dynamic`).
        folder: None: `source` itself.
    Returns:
        The file.
    Raises:
        PolicyFilesError: the weights cannot be read.
    """
    source = Path(source)
    path = Path(folder or source) / FEATURE_FILE
    found = {name: tensor.float().numpy() for name, tensor in _tensors(source).items()}
    vision = read_config(source / "config.json")["vision_config"]
    shape = feature_shape(vision, family_of(source))
    weights = {name.removeprefix(BLOCK): value for name, value in found.items() if name.startswith(BLOCK)}
    weights["kernel"] = _single_frame_kernel(found[f"{TOWER}patch_embed.weight"], vision["flexivideo"]["unit_gain"])
    for name, key in (("bias", "patch_embed.bias"), ("positions", "pos_embed.weight")):
        if TOWER + key in found:
            weights[name] = found[TOWER + key]
    np.savez(path, shape=np.array(json.dumps(asdict(shape))), **dict(sorted(weights.items())))
    return path


def feature_shape(vision: Mapping[str, Any], family: Family) -> FeatureShape:
    """What of a config.json's vision_config shapes the features."""
    patch, window = vision["patch_size"], vision.get("window_size", 0)
    if 0 in vision.get("fullatt_block_indexes", ()):
        window = 0
    window_patches = window // patch // vision["spatial_merge_size"] * vision["spatial_merge_size"]
    return FeatureShape(patch, vision["num_heads"], window_patches, family.pixel_mean, family.pixel_std)


def _single_frame_kernel(kernel_C3Tpp: np.ndarray, unit_gain: bool) -> np.ndarray:
    """(D, C): the kernel as a scene of one frame meets it."""
    resample_T = resample_matrix(1, kernel_C3Tpp.shape[2], unit_gain)[0]
    kernel_C3pp = np.tensordot(kernel_C3Tpp, resample_T, axes=([2], [0]))
    return np.ascontiguousarray(kernel_C3pp.reshape(len(kernel_C3pp), -1).T, dtype=np.float32)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Of patch embedding, learned positions and first block."""
    wanted = (f"{TOWER}patch_embed.", f"{TOWER}pos_embed.", BLOCK)
    tensors = {}
    for file, entries in read_weights(folder).items():
        with safe_open(folder / file, framework="pt") as weights:
            tensors |= {name: weights.get_tensor(name) for name in entries if name.startswith(wanted)}
    return tensors
