"""From scored groups to a gradient: credit and the surrogate loss."""

from __future__ import annotations

from dataclasses import dataclass, field

from rl.config.errors import require, require_one_of


@dataclass(frozen=True)
class AdvantageConfig:
    """Credit: from rewards to one number per token."""

    # sd_grpo (each segment has the advantage of its own rewards) | grpo | gdpo (one advantage per trajectory)
    method: str = "sd_grpo"
    scale: str = "std"  # divide by the group's standard deviation: std | none (Dr. GRPO)
    cross_credit: float = 0.0  # of the reasoning advantage, given to sampling tokens too; the paper has 0
    # steps over which cross_credit goes to cross_credit_end on a straight line, from the run's first step on; 0: it
    # stays what it is
    cross_credit_steps: int = 0
    cross_credit_end: float = 0.0  # cross credit from then on
    # several calls of a trajectory: together (all have the advantage of its sampling reward, as scoring.calls makes it
    # of theirs) | each (every call that of its own reward, among the calls of the same number in the group)
    calls: str = "together"
    # sampling tokens of tasks without evidence: reason (take the reasoning advantage) | mask (take none)
    unannotated: str = "reason"
    sampling_weight: float = 0.5  # of the sampling reward, where grpo and gdpo fold both into one
    reasoning_weight: float = 0.5  # of the reasoning reward, likewise

    def __post_init__(self) -> None:
        require_one_of("algorithm.advantage.method", self.method, ("sd_grpo", "grpo", "gdpo"))
        require_one_of("algorithm.advantage.scale", self.scale, ("std", "none"))
        require_one_of("algorithm.advantage.unannotated", self.unannotated, ("reason", "mask"))
        require_one_of("algorithm.advantage.calls", self.calls, ("together", "each"))
        require(
            self.calls == "together" or self.method == "sd_grpo",
            f"algorithm.advantage.calls=each credits segments apart, but algorithm.advantage.method is {self.method}: "
            "take sd_grpo, or calls=together",
        )
        require(
            self.cross_credit_steps >= 0,
            f"algorithm.advantage.cross_credit_steps must be >= 0, got {self.cross_credit_steps}",
        )


@dataclass(frozen=True)
class LossConfig:
    """The surrogate objective."""

    ratio: str = "token"  # importance ratio: token (PPO, GRPO) | sequence (GSPO) | cispo
    clip_low: float = 0.2  # ratios below 1 - clip_low are clipped
    # ratios above 1 + clip_high are clipped; larger than clip_low (DAPO) keeps rare tokens learnable
    clip_high: float = 0.28
    # what token losses are divided by: sequence (the paper) | token | segment | constant (Dr. GRPO)
    normaliser: str = "sequence"
    constant_tokens: int = 128  # divisor of the constant normaliser, per sequence
    kl_beta: float = 0.0  # weight of the k3 divergence from the frozen initial policy; 0 loads no reference
    # behaviour log-probs: engine (as sampled) | recompute (by the learner, one more forward pass)
    old_logprobs: str = "engine"
    tis_cap: float = 2.0  # largest truncated importance weight for engine/learner mismatch; 0: off
    # trajectories that ran out of tokens are not learned from; their rewards still count for the group
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
    # times a group whose rewards are equal in both roles is replaced by another task's; 0: off
    dynamic_sampling: int = 0
