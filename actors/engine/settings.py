"""vLLM's settings for a policy, on CPU and on CUDA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rl.config.policy import PolicyConfig
from rl.config.rollout import EngineConfig
from rl.policy.vllm.plugin import BATCH_INVARIANT, LINK_ENGINE, WORKER_EXTENSION

BLOCK_TOKENS = 32  # granularity of the prefix cache on CPU; its attention takes multiples of 32
MIN_BATCHED_TOKENS = 8192  # prompts prefilled in one step together


def engine_arguments(
    policy_dir: str | Path,
    policy: PolicyConfig,
    engine: EngineConfig,
    seed: int,
    *,
    on_cpu: bool,
    deterministic: bool = False,
    sleeps: bool = False,
) -> dict[str, Any]:
    """Arguments of vLLM's engine for the policy in `policy_dir`.

    docs/decisions/0003-engine.md says what differs on CPU and why, 0013-exact-resume.md what `deterministic` changes.
    """
    one_at_a_time = deterministic and engine.max_num_seqs == 1  # then exactness leans on nothing that was measured
    common = {
        "model": str(policy_dir),
        "dtype": policy.dtype,
        "seed": seed,
        "max_model_len": engine.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": max(engine.max_model_len, MIN_BATCHED_TOKENS),
        "enforce_eager": engine.enforce_eager,
        "enable_prefix_caching": not one_at_a_time,
        "mm_processor_cache_gb": engine.mm_cache_gib,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "worker_extension_cls": WORKER_EXTENSION,
        "weight_transfer_config": {"backend": LINK_ENGINE},
        "additional_config": {BATCH_INVARIANT: deterministic},
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if engine.tensor_parallel_size > 1:
        common |= {
            "tensor_parallel_size": engine.tensor_parallel_size,
            # inside a placement group vLLM would choose Ray, and refuse a bundle that holds all its GPUs
            "distributed_executor_backend": "mp",
            # the tower is small and scenes are many: each GPU has all of it and encodes some of them
            "mm_encoder_tp_mode": "data",
        }
    if not on_cpu:
        return (
            {"distributed_executor_backend": "uni"}
            | common
            | {
                "gpu_memory_utilization": engine.gpu_memory_utilization,
                **({"enable_sleep_mode": True} if sleeps else {}),
            }
        )
    return common | {
        "enforce_eager": True,
        "kv_cache_memory_bytes": engine.kv_cache_bytes,
        "block_size": BLOCK_TOKENS,
        "enable_chunked_prefill": False,
        "skip_mm_profiling": True,
    }
