"""From scored groups to a gradient: credit and the surrogate loss."""

from __future__ import annotations

from dataclasses import dataclass, field

from rl.config.errors import require, require_one_of


@dataclass(frozen=True)
class AdvantageConfig:
    """Credit: from rewards to one number per token."""

    method: str = "sd_grpo"  # sd_grpo | grpo | gdpo
    scale: str = "std"  # std | none
    cross_credit: float = 0.0  # share of the reasoning advantage that sampling tokens also get
    unannotated: str = "reason"  # sampling tokens of tasks without evidence: reason | mask
    sampling_weight: float = 0.5  # grpo and gdpo fold both rewards into one scalar
    reasoning_weight: float = 0.5

    def __post_init__(self) -> None:
        require_one_of("algorithm.advantage.method", self.method, ("sd_grpo", "grpo", "gdpo"))
        require_one_of("algorithm.advantage.scale", self.scale, ("std", "none"))
        require_one_of("algorithm.advantage.unannotated", self.unannotated, ("reason", "mask"))


@dataclass(frozen=True)
class LossConfig:
    """The surrogate objective."""

    ratio: str = "token"  # token (PPO/GRPO) | sequence (GSPO) | cispo
    clip_low: float = 0.2
    clip_high: float = 0.28  # DAPO clip-higher
    normaliser: str = "sequence"  # sequence (the paper) | token | segment | constant (Dr.GRPO)
    constant_tokens: int = 128  # divisor of the constant normaliser, per sequence
    kl_beta: float = 0.0  # k3 against a frozen reference; 0 loads no reference
    old_logprobs: str = "engine"  # engine | recompute
    tis_cap: float = 2.0  # truncated importance weights for engine/learner mismatch; 0 = off
    mask_truncated: bool = True

    def __post_init__(self) -> None:
        require_one_of("algorithm.loss.ratio", self.ratio, ("token", "sequence", "cispo"))
        require_one_of("algorithm.loss.normaliser", self.normaliser, ("sequence", "token", "segment", "constant"))
        require_one_of("algorithm.loss.old_logprobs", self.old_logprobs, ("engine", "recompute"))
        require(0 <= self.clip_low < 1, "algorithm.loss.clip_low must be in [0, 1)")
        require(self.clip_high >= 0, "algorithm.loss.clip_high must be >= 0")
        require(self.kl_beta >= 0, "algorithm.loss.kl_beta must be >= 0")
        require(self.constant_tokens >= 1, f"algorithm.loss.constant_tokens must be >= 1, got {self.constant_tokens}")


@dataclass(frozen=True)
class AlgorithmConfig:
    """From scored groups to a gradient."""

    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    dynamic_sampling: int = 0  # times a group with zero variance in both roles is replaced; 0 = off
