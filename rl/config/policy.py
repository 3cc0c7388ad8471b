"""Which policy is trained: its folder or size, and FlexiVideo's scenes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from rl.config.errors import require, require_one_of

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class TinyPolicyConfig:
    """Size of the policy the project builds itself when `policy.path` is empty: about 1-3 M parameters."""

    family: str = "qwen2_5_vl"  # qwen2_5_vl | qwen3_vl: whose structure it has
    hidden_size: int = 128  # of the language model; 32 * num_heads
    num_layers: int = 4  # of the language model
    num_heads: int = 4  # attention heads of 32 dimensions each, the fewest that vLLM's attention supports
    num_kv_heads: int = 2  # key/value heads (grouped-query attention); must divide num_heads
    vision_hidden_size: int = 64  # of the vision tower
    vision_layers: int = 2  # transformer blocks of the vision tower
    vision_heads: int = 2  # attention heads of the vision tower
    vocab_size: int = 768  # byte-level BPE, trained when the policy is built; padded to a multiple of 64
    max_position_embeddings: int = 4096  # longest context; rollout.engine.max_model_len may not exceed it

    def __post_init__(self) -> None:
        require_one_of("policy.tiny.family", self.family, ("qwen2_5_vl", "qwen3_vl"))
        require(self.hidden_size == 32 * self.num_heads, "policy.tiny.hidden_size must be 32 * policy.tiny.num_heads")
        require(self.num_heads % self.num_kv_heads == 0, "policy.tiny.num_kv_heads must divide policy.tiny.num_heads")


@dataclass(frozen=True)
class ScenesConfig:
    """FlexiVideo's Adaptive Temporal Segmentation and encoding. All of it enters the policy's fingerprint."""

    mode: str = "dynamic"  # dynamic | fixed (2-frame pairs, stock kernel) | fixed6 (6-frame scenes)
    tau: float = 0.2  # largest change inside a scene, ImageNet-normalised units; the paper's value
    norm: str = "l2"  # over channels: l2 (the paper) | rms
    difference_scale: int = 1  # area-downscale by this factor before differencing; 4-8 is proof against sensor noise
    reference: str = "first"  # compare with the scene's first frame (the paper) | previous
    max_scene_frames: int = 64  # longest scene; beyond it a new one begins even if nothing changes
    budget: str = "pairs"  # pairs: raise tau per block until K <= ceil(T/2) | none: the literal rule
    init_frames: int = 6  # temporal extent of the expanded kernel, T_init
    unit_gain: bool = True  # rescale each resampled kernel so that a still scene keeps the original response
    timestamps: str = "text"  # each scene preceded by its start time as text | none (the paper's layout)

    def __post_init__(self) -> None:
        require_one_of("policy.scenes.mode", self.mode, ("dynamic", "fixed", "fixed6"))
        require_one_of("policy.scenes.norm", self.norm, ("l2", "rms"))
        require_one_of("policy.scenes.reference", self.reference, ("first", "previous"))
        require_one_of("policy.scenes.budget", self.budget, ("pairs", "none"))
        require_one_of("policy.scenes.timestamps", self.timestamps, ("text", "none"))
        require(self.tau >= 0, f"policy.scenes.tau must be >= 0, got {self.tau}")
        require(self.difference_scale in (1, 2, 4, 8), "policy.scenes.difference_scale must be 1, 2, 4 or 8")
        require(self.max_scene_frames >= 1, "policy.scenes.max_scene_frames must be >= 1")
        require(
            self.init_frames >= 2 and self.init_frames % 2 == 0,
            f"policy.scenes.init_frames must be even and >= 2 (the stock kernel spans 2), got {self.init_frames}",
        )


@dataclass(frozen=True)
class PolicyConfig:
    """Which policy is trained."""

    # a Hugging Face folder: stock Qwen2.5-VL or Qwen3-VL, or ours; or a repository on the hub, as
    # Qwen/Qwen3-VL-4B-Instruct; empty: build the tiny policy
    path: str = ""
    revision: str = ""  # of a repository on the hub: branch, tag or commit; empty: main
    tiny: TinyPolicyConfig = field(default_factory=TinyPolicyConfig)
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    dtype: str = "float32"  # float32 | bfloat16; engine and learner alike

    def __post_init__(self) -> None:
        require_one_of("policy.dtype", self.dtype, ("float32", "bfloat16"))

    @property
    def is_on_hub(self) -> bool:
        """Whether `path` can only mean a repository on the hub: `owner/name`, and no folder `owner` is here."""
        return bool(HUB_ID.fullmatch(self.path)) and not Path(self.path).parent.is_dir()
