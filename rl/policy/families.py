"""The model families whose policies can be trained: one record each, and how a folder's family is told. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from rl.policy.token_ids import PolicyFilesError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
STOCK_KERNEL, KERNEL = "model.visual.patch_embed.proj.weight", "model.visual.patch_embed.weight"
STOCK_BIAS, BIAS = "model.visual.patch_embed.proj.bias", "model.visual.patch_embed.bias"


class Markers(Enum):
    """Where `<|vision_start|>` and `<|vision_end|>` stand in a video block."""

    AROUND_BLOCK = "block"  # start, every scene, end
    AROUND_SCENE = "scene"  # for every scene: its time, start, its tokens, end


class SceneTime(Enum):
    """Which moment of a scene is its time."""

    START = "start"  # its first frame's
    MIDDLE = "middle"  # the mean of its first and its last frame's


@dataclass(frozen=True, slots=True)
class Family:
    """What distinguishes a model family for everything that both engine and learner do."""

    model_type: str  # config.json's, of a stock checkpoint
    own_model_type: str  # of a folder of ours, which stock classes cannot read
    architecture: str  # the name under which the engine knows it, and the learner's class
    learner: str  # module of that class
    engine: str  # module:class
    markers: Markers
    scene_time: SceneTime
    has_interleaved_axes: bool  # of MRoPE's frequencies; config.json must say so, or engine and learner differ
    tokens_per_second: float | None  # of the clock in positions, where config.json has none; None: it must have one
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    renames: Mapping[str, str]  # weights of the stock patch embedding -> ours
    on_the_hub: str  # a checkpoint of the family, for messages

    @property
    def has_patch_bias(self) -> bool:
        """Whether the patch embedding adds a bias, which belongs to the scene: never resampled, never rescaled."""
        return STOCK_BIAS in self.renames


QWEN2_5_VL = Family(
    model_type="qwen2_5_vl",
    own_model_type="flexivideo_qwen2_5_vl",
    architecture="FlexiVideoForConditionalGeneration",
    learner="rl.policy.qwen2_5_vl",
    engine="rl.policy.vllm.qwen2_5_vl:FlexiVideoForConditionalGeneration",
    markers=Markers.AROUND_BLOCK,
    scene_time=SceneTime.START,
    has_interleaved_axes=False,
    tokens_per_second=None,
    pixel_mean=CLIP_MEAN,
    pixel_std=CLIP_STD,
    renames={STOCK_KERNEL: KERNEL},
    on_the_hub="Qwen/Qwen2.5-VL-3B-Instruct",
)
QWEN3_VL = Family(
    model_type="qwen3_vl",
    own_model_type="flexivideo_qwen3_vl",
    architecture="FlexiVideoQwen3VLForConditionalGeneration",
    learner="rl.policy.qwen3_vl",
    engine="rl.policy.vllm.qwen3_vl:FlexiVideoQwen3VLForConditionalGeneration",
    markers=Markers.AROUND_SCENE,
    scene_time=SceneTime.MIDDLE,
    has_interleaved_axes=True,
    tokens_per_second=0.0,  # time is text alone
    pixel_mean=(0.5, 0.5, 0.5),
    pixel_std=(0.5, 0.5, 0.5),
    renames={STOCK_KERNEL: KERNEL, STOCK_BIAS: BIAS},
    on_the_hub="Qwen/Qwen3-VL-4B-Instruct",
)
FAMILIES: Mapping[str, Family] = {family.model_type: family for family in (QWEN2_5_VL, QWEN3_VL)}
BY_MODEL_TYPE: Mapping[str, Family] = {**FAMILIES, **{family.own_model_type: family for family in FAMILIES.values()}}
MISSING = {  # relatives, and what is missing for them
    "qwen3_vl_moe": "its experts would need their routing replayed and their weights read back one by one",
    "qwen3_5": "its linear attention has no shared-prefix and no parity proof here",
    "qwen3_5_moe": "its linear attention and its experts have no parity proof here",
    "qwen2_vl": "its tower has neither windows nor a clock in seconds",
}


def family_of(folder: str | Path) -> Family:
    """The family of a policy's folder, stock or ours, by the `model_type` of its config.json.

    Raises:
        PolicyFilesError: no readable config.json, or a family that cannot be trained here; the message names it.
    """
    path = Path(folder) / "config.json"
    return family_in(read_config(path), path)


def family_in(config: Mapping[str, Any], path: str | Path) -> Family:
    """As `family_of`, of a configuration that is read already.

    Args:
        path: of the file, for the message.
    """
    model_type = config.get("model_type")
    family = BY_MODEL_TYPE.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        told = repr(model_type)[:60] if model_type is not None else "(none)"
        missing = f" ({MISSING[model_type]})" if isinstance(model_type, str) and model_type in MISSING else ""
        known = ", ".join(f"{known.model_type!r} such as {known.on_the_hub}" for known in FAMILIES.values())
        raise PolicyFilesError(f"{path}: model_type {told} cannot be trained here{missing}; what can is {known}")
    if model_type == family.own_model_type and not is_ours(config):
        raise PolicyFilesError(f"{path}: model_type {model_type!r} without vision_config.flexivideo; export it again")
    return family


def is_ours(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a policy of ours, which reads scenes, and not of a stock checkpoint."""
    vision = config.get("vision_config")
    return isinstance(vision, dict) and bool(vision.get("flexivideo"))


def read_config(path: Path) -> dict[str, Any]:
    """A config.json.

    Raises:
        PolicyFilesError: it is not there, or holds no configuration.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PolicyFilesError(f"{path}: cannot be read as a model's configuration ({error})"[:500]) from error
    if not isinstance(found, dict):
        raise PolicyFilesError(f"{path}: holds no configuration of a model")
    return found
