"""Which policy is trained: its folder or size, and FlexiVideo's scenes."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rl.config.errors import require, require_one_of

OF_ADAPTIVE_THRESHOLD = ("threshold", "noise_quantile", "noise_spreads", "max_noise")
OF_FEATURES = ("difference",)
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
    # what frames are compared by: pixels (the paper) | features (of the vision tower's first block, as the policy
    # started; tau is then the mean distance of unit vectors, 0 to 2)
    difference: str = "pixels"
    # fixed: tau (the paper) | adaptive: tau above the block's noise floor, min(noise + noise_spreads * spread,
    # max_noise), where noise and spread are taken from the differences of successive frames
    threshold: str = "fixed"
    noise_quantile: float = 0.15  # noise: this quantile of them; spread: from there to the quantile twice as high
    noise_spreads: float = 2.0  # more: fewer cuts by flicker and shake, and more changes missed (benchmarks/flexivideo)
    max_noise: float = 0.8  # highest floor, in units of tau: where every frame is a cut, each is still found

    def __post_init__(self) -> None:
        self._require_rule()
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

    @property
    def acting(self) -> dict[str, object]:
        """Every field but those of a rule that is off: a fingerprint is what it was before there was that rule."""
        off = () if self.threshold == "adaptive" else OF_ADAPTIVE_THRESHOLD
        off += () if self.difference == "features" else OF_FEATURES
        return {name: value for name, value in asdict(self).items() if name not in off}

    def _require_rule(self) -> None:
        require_one_of("policy.scenes.difference", self.difference, ("pixels", "features"))
        require_one_of("policy.scenes.threshold", self.threshold, ("fixed", "adaptive"))
        require(
            0 < self.noise_quantile <= 0.5,
            f"policy.scenes.noise_quantile must be in (0, 0.5]: noise is the calmer half, got {self.noise_quantile}",
        )
        for key in ("noise_spreads", "max_noise"):
            require(getattr(self, key) >= 0, f"policy.scenes.{key} must be >= 0, got {getattr(self, key)}")
        if self.difference == "features":
            require(
                self.mode == "dynamic" and self.difference_scale == 1 and self.norm == "l2",
                "policy.scenes.difference=features compares patches as the tower sees them: it needs mode=dynamic, "
                "difference_scale=1 and norm=l2",
            )


LANGUAGE_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TOWER_PROJECTIONS = ("qkv", "proj", "gate_proj", "up_proj", "down_proj", "linear_fc1", "linear_fc2")
OF_TOWER = "visual."
TRAINABLE_PARTS = ("merger", "lm_head", "embed_tokens")


@dataclass(frozen=True)
class LoraConfig:
    """LoRA: only low-rank updates of some products are trained (by peft). Engines run with updates added to weights."""

    rank: int = 0  # of an update; 0: no LoRA, all parameters are trained
    alpha: float = 32.0  # updates are scaled by alpha / rank
    # products of every language layer; those of the vision tower's blocks have visual. before their name (visual.qkv);
    # without one of these the tower is frozen, as with learner.freeze_vision
    targets: list[str] = field(default_factory=lambda: list(LANGUAGE_PROJECTIONS))
    full: list[str] = field(default_factory=list)  # parts trained in full beside: merger, lm_head, embed_tokens

    def __post_init__(self) -> None:
        require(self.rank >= 0, f"policy.lora.rank must be >= 0, got {self.rank}")
        require(self.alpha > 0, f"policy.lora.alpha must be > 0, got {self.alpha}")
        require(bool(self.targets) or not self.rank, "policy.lora.targets is empty; policy.lora.rank=0 turns LoRA off")
        for target in self.targets:
            require_one_of(
                "policy.lora.targets", target, (*LANGUAGE_PROJECTIONS, *(OF_TOWER + name for name in TOWER_PROJECTIONS))
            )
        for part in self.full:
            require_one_of("policy.lora.full", part, TRAINABLE_PARTS)

    @property
    def of_tower(self) -> list[str]:
        """Those targets that are products of the vision tower's blocks."""
        return [target for target in self.targets if target.startswith(OF_TOWER)]

    @property
    def freezes_tower(self) -> bool:
        """Nothing of the vision tower before its mergers is trained."""
        return self.rank > 0 and not self.of_tower


@dataclass(frozen=True)
class PolicyConfig:
    """Which policy is trained."""

    # a Hugging Face folder: stock Qwen2.5-VL or Qwen3-VL, or ours; or a repository on the hub, as
    # Qwen/Qwen3-VL-4B-Instruct; empty: build the tiny policy
    path: str = ""
    revision: str = ""  # of a repository on the hub: branch, tag or commit; empty: main
    # folder of a LoRA adapter that peft has saved, added to the policy's weights before anything else; empty: none
    adapter: str = ""
    tiny: TinyPolicyConfig = field(default_factory=TinyPolicyConfig)
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    dtype: str = "float32"  # float32 | bfloat16; engine and learner alike
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        require_one_of("policy.dtype", self.dtype, ("float32", "bfloat16"))

    @property
    def is_on_hub(self) -> bool:
        """Whether `path` can only mean a repository on the hub: `owner/name`, and no folder `owner` is here."""
        return bool(HUB_ID.fullmatch(self.path)) and not Path(self.path).parent.is_dir()
