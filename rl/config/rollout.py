"""Making trajectories: groups, sampling, deadlines, and one vLLM engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from rl.config.errors import require


@dataclass(frozen=True)
class EngineConfig:
    """One vLLM engine."""

    max_model_len: int = 2048  # tokens of the longest trajectory, inserted frames included
    # trajectories that one engine decodes at once; 0: as many of the longest as its KV cache holds, at most those of a
    # step
    max_num_seqs: int = 32
    kv_cache_bytes: int = 268_435_456  # on CPU; on GPU gpu_memory_utilization decides
    # of one GPU, for weights and KV cache; leave room for learners on the same GPU
    gpu_memory_utilization: float = 0.85
    tensor_parallel_size: int = 1  # GPUs per engine: placement.rollout_gpus must be at least as many
    enforce_eager: bool = True  # no CUDA graphs: slower decoding, faster start, weights may change under it
    mm_cache_gib: float = 0.25  # processed frames that vLLM keeps for the next turn of the same trajectory

    def __post_init__(self) -> None:
        require(self.max_model_len >= 1, f"rollout.engine.max_model_len must be >= 1, got {self.max_model_len}")
        require(
            self.tensor_parallel_size >= 1,
            f"rollout.engine.tensor_parallel_size must be >= 1, got {self.tensor_parallel_size}",
        )


@dataclass(frozen=True)
class RolloutConfig:
    """Making trajectories."""

    group_size: int = 8  # siblings per task (G): their rewards are each other's baseline
    tasks_per_step: int = 8  # groups of one optimizer step; a multiple of learner.num_ranks
    max_new_tokens: int = 128  # tokens sampled per trajectory; inserted ones do not count
    temperature: float = 1.0  # of sampling; log-probs are those of the distribution at this temperature
    top_p: float = 1.0  # 1.0 in training: cutting off the tail would bias importance ratios
    top_k: int = 0  # 0 (all tokens) in training, for the same reason
    num_workers: int = 1  # engines, each in a process of its own
    # on CPU in float32: a trajectory follows from weights, task and seed alone, bit for bit, log-probs included, in any
    # batch, order and engine, and after a fault; on GPU nothing is promised
    deterministic: bool = False
    stall_timeout_s: float = 180.0  # a worker that has work and makes no progress for so long is killed and replaced
    # a worker that has grown by more since its start is replaced between two steps; 0: never
    memory_growth_mib: float = 8192.0
    device_memory_growth_mib: float = 2048.0  # the same for what its engine holds on its GPU
    # deadline for all groups of a step or held-out evaluation; in `dynframe eval`, for the time in which no example is
    # finished
    call_timeout_s: float = 600.0
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        require(self.group_size >= 2, f"rollout.group_size must be >= 2 for a group baseline, got {self.group_size}")
        require(self.tasks_per_step >= 1, "rollout.tasks_per_step must be >= 1")
        require(self.max_new_tokens >= 1, f"rollout.max_new_tokens must be >= 1, got {self.max_new_tokens}")
        require(self.num_workers >= 1, f"rollout.num_workers must be >= 1, got {self.num_workers}")
        require(self.call_timeout_s > 0, f"rollout.call_timeout_s must be > 0, got {self.call_timeout_s}")
        require(self.stall_timeout_s > 0, f"rollout.stall_timeout_s must be > 0, got {self.stall_timeout_s}")
        require(self.memory_growth_mib >= 0, f"rollout.memory_growth_mib must be >= 0, got {self.memory_growth_mib}")
        require(
            self.device_memory_growth_mib >= 0,
            f"rollout.device_memory_growth_mib must be >= 0, got {self.device_memory_growth_mib}",
        )
        require(self.temperature > 0, "rollout.temperature must be > 0 in training; evaluation is greedy by itself")
        require(
            self.top_p == 1.0 and self.top_k == 0,
            "rollout.top_p < 1 and rollout.top_k > 0 truncate the support and bias importance ratios: "
            "leave them at 1.0 and 0 in training; evaluation is greedy by itself",
        )
