"""DeepSpeed learners: ranks, optimizer, the supervised stage before, and weights back to the engines."""

from __future__ import annotations

from dataclasses import dataclass, field

from rl.config.data import SourceConfig, require_columns
from rl.config.errors import require, require_one_of

AUTO = "auto"
RECOMPUTED = ("none", "vision", "language", "all")  # parts whose activations the backward pass computes again
OBJECT_STORE = "object_store"
ON_GPUS = ("nccl", "ipc")  # the transport between GPUs, and on GPUs that are shared


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay."""

    lr: float = 1e-5  # learning rate after warm-up
    weight_decay: float = 0.0  # decoupled; matrices only, not biases and norms
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])  # decay of AdamW's first and second moment
    warmup_fraction: float = 0.05  # of the run's optimizer steps, from 0 up to lr
    min_lr_fraction: float = 0.1  # of lr, where the cosine ends
    max_grad_norm: float = 1.0  # gradients are clipped to it, over all parameters and ranks

    def __post_init__(self) -> None:
        require(self.lr > 0, f"learner.optimizer.lr must be > 0, got {self.lr}")
        require(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            f"learner.optimizer.betas must be two numbers in [0, 1), got {self.betas}",
        )


@dataclass(frozen=True)
class LearnerConfig:
    """DeepSpeed learner ranks."""

    num_ranks: int = 1  # DeepSpeed ranks, one process each
    zero_stage: int = 1  # 0 | 1 (optimizer state split over ranks) | 2 (gradients, too) | 3 (weights, too)
    deepspeed_config: str = ""  # extra DeepSpeed keys from a JSON or YAML file; ours win where they collide
    micro_batch: int = 8  # trajectories per forward pass and rank, at most; lower it where activations do not fit
    micro_tokens: int = 0  # tokens per forward pass and rank, at most, unless one trajectory is longer; 0: no limit
    # auto: what siblings begin with alike, prompt and coarse frames, is computed once per forward pass | off
    shared_prefix: str = "auto"
    # ranks that share one micro-batch, each with a part of its tokens (Ulysses): for trajectories too long for one GPU;
    # divides num_ranks and the policy's attention heads
    sequence_parallel: int = 1
    updates_per_step: int = 1  # optimizer steps per batch of rollouts; above 1 the later ones are off-policy
    freeze_vision: bool = False  # vision blocks frozen; merger and language model trained
    # with freeze_vision: bytes of main memory per rank for what the frozen blocks make of videos, so that a clip met
    # again, by a sibling, the reference or a later step, costs the mergers only; 0: they run every time. Beside a GPU
    # memory is pinned, where a tensor takes, and counts as, the next power of two
    vision_cache_bytes: int = 1_073_741_824
    # activations that are not kept but computed again in the backward pass, for less memory: none | vision (the tower's
    # blocks) | language (the language model's layers: up to a third more time) | all | auto: the cheapest with which
    # every learner rank fits its GPU, by the memory plan, decided once for a run; none where that is not known, and on
    # CPUs. true and false, as before 0.4.0, are all and none
    activation_checkpointing: str = AUTO
    # steps between two digests of masters and AdamW's state in metrics.jsonl (state/optimizer), each of which reads all
    # of it. 0: never. `verify-resume` makes one at every step
    digest_every: int = 1
    timeout_s: float = 600.0  # for one update; also the timeout of collectives
    max_rebuilds: int = 3  # times lost learners are rebuilt from the newest checkpoint without a step in between
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    @property
    def recomputes_vision(self) -> bool:
        """Whether the tower's blocks are computed again; frozen ones leave nothing to recompute."""
        return self.activation_checkpointing in ("vision", "all") and not self.freeze_vision

    @property
    def recomputes_language(self) -> bool:
        """Whether the language model's layers are."""
        return self.activation_checkpointing in ("language", "all")

    @property
    def sequence_groups(self) -> int:
        """Ranks, or groups of them, that have samples of their own."""
        return self.num_ranks // self.sequence_parallel

    def __post_init__(self) -> None:
        require(self.num_ranks >= 1, "learner.num_ranks must be >= 1")
        require(self.zero_stage in (0, 1, 2, 3), "learner.zero_stage must be 0, 1, 2 or 3")
        require(self.micro_batch >= 1, "learner.micro_batch must be >= 1")
        require(self.digest_every >= 0, f"learner.digest_every must be >= 0, got {self.digest_every}")
        split = self.sequence_parallel
        require(
            split >= 1 and self.num_ranks % split == 0,
            f"learner.sequence_parallel={split} must divide learner.num_ranks={self.num_ranks}",
        )
        require(self.micro_tokens >= 0, f"learner.micro_tokens must be >= 0, got {self.micro_tokens}")
        require(
            self.shared_prefix in ("auto", "off"),
            f"learner.shared_prefix must be auto or off, got {self.shared_prefix!r}",
        )
        require_one_of("learner.activation_checkpointing", self.activation_checkpointing, (AUTO, *RECOMPUTED))
        require(
            not (self.freeze_vision and self.activation_checkpointing == "vision"),
            "learner.activation_checkpointing=vision recomputes nothing with learner.freeze_vision=true, for a tower "
            "that does not learn keeps no activations: set language, none or auto",
        )
        require(self.updates_per_step >= 1, f"learner.updates_per_step must be >= 1, got {self.updates_per_step}")
        require(self.vision_cache_bytes >= 0, f"learner.vision_cache_bytes must be >= 0, got {self.vision_cache_bytes}")
        require(self.max_rebuilds >= 0, f"learner.max_rebuilds must be >= 0, got {self.max_rebuilds}")


@dataclass(frozen=True)
class ColdStartConfig:
    """Supervised stage on retrieval traces, before reinforcement learning."""

    # false: start from the policy as it is; a stock model rarely writes a retrieval call by itself
    enabled: bool = False
    # traces to learn from: dm_cot is a file of them; of any other format they are made from annotated evidence
    traces: SourceConfig = field(default_factory=SourceConfig)
    steps: int = 400  # optimizer steps
    save_every: int = 100  # steps between two checkpoints of the stage, which it goes on from when stopped; 0: none
    batch_size: int = 32  # traces per optimizer step
    lr: float = 2e-3  # peak learning rate; its schedule has the defaults of learner.optimizer
    # where traces are made: windows are off by up to this much, so that RL has something to learn
    window_jitter_s: float = 1.0
    fps_jitter: float = 3.0  # and frame rates by up to this much
    box_jitter: float = 80.0  # and each side of a zoom's box, in thousandths of the frame (kind dot of the world)
    # looks of a trace of the synthetic world, at most: where one shows nothing, another follows (retrieval.max_calls)
    looks: int = 1
    # windows of the synthetic world's traces come so much too early, beside the jitter: greedy looks are wrong, too
    window_shift_s: float = 0.0
    misread: float = 0.0  # share of its traces that saw the flash and take it for another; above 0.5 greedy answers do
    seed: int = 0  # of the jitter and of the order of traces

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"cold_start.steps must be >= 1, got {self.steps}; cold_start.enabled=false skips it")
        require(self.batch_size >= 1, f"cold_start.batch_size must be >= 1, got {self.batch_size}")
        require(self.save_every >= 0, f"cold_start.save_every must be >= 0, got {self.save_every}")
        require(self.lr > 0, f"cold_start.lr must be > 0, got {self.lr}")
        require(0 <= self.box_jitter <= 1000, f"cold_start.box_jitter must be in 0..1000, got {self.box_jitter:g}")
        require(0 <= self.misread <= 1, f"cold_start.misread must be a share, 0..1, got {self.misread}")
        require(self.looks >= 1, f"cold_start.looks must be >= 1, got {self.looks}; cold_start.enabled=false skips it")
        require(
            self.looks == 1 or self.traces.format == "quickstart",
            f"cold_start.looks={self.looks}: only traces of the synthetic world tell what a look shows; set it to 1",
        )
        require_columns("cold_start.traces", self.traces)


@dataclass(frozen=True)
class WeightSyncConfig:
    """Learners to engines."""

    # how they travel: nccl (between GPUs), ipc (on a GPU that engine and learner share; on CPUs through shared memory),
    # gloo (between CPUs), object_store (anywhere; engines that start late always get them there), or auto: nccl or ipc
    # as GPUs are placed, object_store where either side has none
    transport: str = "auto"
    # weights travel in pieces of this size: larger is faster, and takes more of the object store
    bucket_bytes: int = 67_108_864
    timeout_s: float = 300.0  # for every engine to load one push of weights and to sum up what it then holds

    def __post_init__(self) -> None:
        require_one_of("weight_sync.transport", self.transport, ("auto", OBJECT_STORE, *ON_GPUS, "gloo"))

    def transport_for(self, rollout_gpus: float, learner_gpus: float, *, shared: bool) -> str:
        """How weights travel from learners to engines placed so.

        Args:
            shared: engines and learner ranks stand on the same GPUs.
        Raises:
            ConfigError: the transport that is set cannot.
        """
        on_gpus = rollout_gpus > 0 and learner_gpus > 0
        possible = (ON_GPUS[shared],) if on_gpus else () if rollout_gpus or learner_gpus else ("gloo", "ipc")
        if self.transport == "auto":
            return ON_GPUS[shared] if on_gpus else OBJECT_STORE
        require(
            self.transport in (OBJECT_STORE, *possible),
            f"weight_sync.transport={self.transport} cannot be used with placement.rollout_gpus={rollout_gpus:g} and "
            f"placement.learner_gpus={learner_gpus:g}: set {' or '.join((*possible, OBJECT_STORE))}, or auto",
        )
        return self.transport
