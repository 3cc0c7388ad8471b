"""DeepSpeed learners: ranks, optimizer, the supervised stage before, and weights back to the engines."""

from __future__ import annotations

from dataclasses import dataclass, field

from rl.config.data import SourceConfig
from rl.config.errors import require


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay."""

    lr: float = 1e-5
    weight_decay: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    warmup_fraction: float = 0.05  # of the run's optimizer steps
    min_lr_fraction: float = 0.1  # where the cosine ends
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        require(self.lr > 0, f"learner.optimizer.lr must be > 0, got {self.lr}")
        require(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            f"learner.optimizer.betas must be two numbers in [0, 1), got {self.betas}",
        )


@dataclass(frozen=True)
class LearnerConfig:
    """DeepSpeed learner ranks."""

    num_ranks: int = 1
    zero_stage: int = 1
    deepspeed_config: str = ""  # extra DeepSpeed keys from a JSON or YAML file; ours win where they collide
    micro_batch: int = 8  # trajectories per forward pass and rank
    updates_per_step: int = 1  # optimizer steps per batch of rollouts
    freeze_vision: bool = False  # ViT blocks frozen; merger and language model trained
    activation_checkpointing: bool = False
    timeout_s: float = 600.0  # one update; also the collective timeout
    max_rebuilds: int = 3  # times lost learners are built anew from the newest checkpoint without getting any further
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        require(self.num_ranks >= 1, "learner.num_ranks must be >= 1")
        require(self.zero_stage in (0, 1, 2, 3), "learner.zero_stage must be 0, 1, 2 or 3")
        require(self.micro_batch >= 1, "learner.micro_batch must be >= 1")
        require(self.updates_per_step >= 1, f"learner.updates_per_step must be >= 1, got {self.updates_per_step}")
        require(self.max_rebuilds >= 0, f"learner.max_rebuilds must be >= 0, got {self.max_rebuilds}")


@dataclass(frozen=True)
class ColdStartConfig:
    """Supervised stage on retrieval traces, before reinforcement learning."""

    enabled: bool = False
    traces: SourceConfig = field(default_factory=SourceConfig)  # dm_cot: a file; else made from annotated evidence
    steps: int = 400
    batch_size: int = 32
    lr: float = 2e-3
    window_jitter_s: float = 1.0  # made traces: windows are off by up to this much, so that RL has something to learn
    fps_jitter: float = 3.0  # and frame rates by this much
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"cold_start.steps must be >= 1, got {self.steps}; cold_start.enabled=false skips it")
        require(self.batch_size >= 1, f"cold_start.batch_size must be >= 1, got {self.batch_size}")
        require(self.lr > 0, f"cold_start.lr must be > 0, got {self.lr}")


@dataclass(frozen=True)
class WeightSyncConfig:
    """Learners to engines."""

    bucket_bytes: int = 67_108_864
    verify_tensors: int = 4  # parameters read back from every engine after each push, rotating; 0 = off
    timeout_s: float = 300.0
