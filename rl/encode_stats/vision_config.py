"""The vision tower that a geometry's name stands for: its family and its `vision_config`, checked before it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl.config.errors import ConfigError
from rl.config.policy import ScenesConfig, TinyPolicyConfig
from rl.policy.families import QWEN2_5_VL, QWEN3_VL, Family, family_in, read_config
from rl.policy.policy_folder import scenes_in
from rl.policy.scenes import PAIR_FRAMES
from rl.policy.token_ids import PolicyFilesError

TINY = {"tiny": QWEN2_5_VL, "tiny-qwen3-vl": QWEN3_VL}  # names of towers that are really run
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
QWEN3_VL_4B: Mapping[str, Any] = {  # vision_config of Qwen/Qwen3-VL-4B-Instruct
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_heads": 16,
    "out_hidden_size": 2560,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": PAIR_FRAMES,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [5, 11, 17],
}
QWEN3_VL_8B: Mapping[str, Any] = {  # vision_config of Qwen/Qwen3-VL-8B-Instruct
    **QWEN3_VL_4B,
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "out_hidden_size": 4096,
    "deepstack_visual_indexes": [8, 16, 24],
}
COUNTED = {  # towers of hub checkpoints, by name: they need no weights
    "qwen2.5-vl-3b": (QWEN2_5_VL, QWEN2_5_VL_3B),
    "qwen3-vl-4b": (QWEN3_VL, QWEN3_VL_4B),
    "qwen3-vl-8b": (QWEN3_VL, QWEN3_VL_8B),
}
GEOMETRIES = (*TINY, *COUNTED)
OWN_SIZES = {  # what a family's tower has beside what all have: whole numbers, and lists of blocks
    QWEN2_5_VL.model_type: (("window_size",), "fullatt_block_indexes"),
    QWEN3_VL.model_type: (("num_position_embeddings",), "deepstack_visual_indexes"),
}


@dataclass(frozen=True, slots=True)
class VisionGeometry:
    """A vision tower's family and configuration."""

    family: Family
    vision: Mapping[str, Any]  # a `vision_config` section
    patch: int  # pixels along each side
    merge: int  # patches along each side of a merged block

    @classmethod
    def of(cls, family: Family, vision: Mapping[str, Any]) -> VisionGeometry:
        """
        Raises:
            PolicyFilesError: a size that decides the tower's cost is missing or not a whole number above 0.
        """
        names, blocks = OWN_SIZES[family.model_type]
        try:
            sizes = {
                "patch": vision.get("patch_size", vision.get("spatial_patch_size", 14)),
                "merge": vision.get("spatial_merge_size", 2),
                **{name: vision[name] for name in ("hidden_size", "intermediate_size", "out_hidden_size", "depth")},
                **{name: vision[name] for name in names},
            }
            list(vision[blocks])
        except (KeyError, TypeError, AttributeError) as error:
            raise PolicyFilesError(f"not the vision_config of {family.model_type} ({error!r})") from error
        wrong = {name: size for name, size in sizes.items() if not (type(size) is int and size > 0)}
        if wrong:
            raise PolicyFilesError(f"vision_config: sizes must be whole numbers above 0, got {wrong}")
        if sizes.get("window_size", sizes["patch"] * sizes["merge"]) < sizes["patch"] * sizes["merge"]:
            raise PolicyFilesError(f"vision_config: a window of {sizes['window_size']} pixels holds no merged block")
        return cls(family, vision, sizes["patch"], sizes["merge"])


def named_geometry(name: str) -> VisionGeometry:
    """The vision tower of one of `GEOMETRIES`, or of a checkpoint's folder.

    Raises:
        ConfigError: unknown, or not a checkpoint's folder.
    """
    if name in TINY:
        from rl.policy.tiny import vision_section

        return VisionGeometry.of(TINY[name], vision_section(TinyPolicyConfig(family=TINY[name].model_type)))
    if name in COUNTED:
        return VisionGeometry.of(*COUNTED[name])
    if not Path(name).is_dir():
        raise ConfigError(f"--geometry must be {', '.join(GEOMETRIES)} or a checkpoint's folder, got {name!r}")
    try:
        return read_geometry(name)
    except PolicyFilesError as error:
        raise ConfigError(f"--geometry {name}: {error}") from error


def own_scenes(name: str) -> ScenesConfig | None:
    """How a policy's folder of ours says that clips are cut; None: the name is no such folder."""
    if name in GEOMETRIES:
        return None
    section = read_config(Path(name) / "config.json")["vision_config"].get("flexivideo")
    return scenes_in(section) if section else None


def read_geometry(folder: str | Path) -> VisionGeometry:
    """The vision tower of a checkpoint's config.json.

    Raises:
        PolicyFilesError: no such file, another family's, or a size is missing.
    """
    path = Path(folder) / "config.json"
    config = read_config(path)
    family, vision = family_in(config, path), config.get("vision_config")
    if not isinstance(vision, dict):
        raise PolicyFilesError(f"{path}: no configuration with a vision_config")
    return VisionGeometry.of(family, vision)
