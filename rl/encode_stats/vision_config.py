"""The `vision_config` that a geometry's name stands for, checked before a tower is made of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl.config.errors import ConfigError
from rl.config.policy import TinyPolicyConfig
from rl.policy.scenes import PAIR_FRAMES
from rl.policy.token_ids import PolicyFilesError

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
class VisionSizes:
    """What of a vision tower's configuration decides how frames are cut into patches."""

    patch: int  # pixels
    merge: int  # patches along each side of a merged block

    @classmethod
    def of(cls, vision: Mapping[str, Any]) -> VisionSizes:
        """From a `vision_config` section.

        Raises:
            PolicyFilesError: a size that decides the tower's cost is missing or not a whole number above 0.
        """
        try:
            sizes = {
                "patch": vision.get("patch_size", vision.get("spatial_patch_size", 14)),
                "merge": vision.get("spatial_merge_size", 2),
                "window": vision.get("window_size", 112),
                **{name: vision[name] for name in ("hidden_size", "intermediate_size", "out_hidden_size", "depth")},
            }
            list(vision["fullatt_block_indexes"])
        except (KeyError, TypeError, AttributeError) as error:
            raise PolicyFilesError(f"not the vision_config of a Qwen2.5-VL ({error!r})") from error
        wrong = {name: size for name, size in sizes.items() if not (type(size) is int and size > 0)}
        if wrong:
            raise PolicyFilesError(f"vision_config: sizes must be whole numbers above 0, got {wrong}")
        if sizes["window"] < sizes["patch"] * sizes["merge"]:
            raise PolicyFilesError(f"vision_config: a window of {sizes['window']} pixels holds no merged block")
        return cls(sizes["patch"], sizes["merge"])


def named_vision_config(name: str) -> Mapping[str, Any]:
    """The `vision_config` of tiny, of qwen2.5-vl-3b, or of a checkpoint's folder.

    Raises:
        ConfigError: unknown, or not a checkpoint's folder.
    """
    if name == "tiny":
        from rl.policy.tiny import vision_section

        return vision_section(TinyPolicyConfig())
    if name == "qwen2.5-vl-3b":
        return QWEN2_5_VL_3B
    if not Path(name).is_dir():
        raise ConfigError(f"--geometry must be tiny, qwen2.5-vl-3b or a checkpoint's folder, got {name!r}")
    try:
        vision = read_vision_config(name)
        VisionSizes.of(vision)
    except PolicyFilesError as error:
        raise ConfigError(f"--geometry {name}: {error}") from error
    return vision


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
