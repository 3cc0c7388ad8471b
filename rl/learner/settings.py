"""The learning-rate schedule, and the DeepSpeed configuration. Nothing heavy is imported to make either."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from typing import Any

from rl.config.errors import ConfigError
from rl.config.installation import found_file
from rl.config.learner import LearnerConfig, OptimizerConfig
from rl.config.yaml_text import plain_yaml

log = logging.getLogger(__name__)

QUIET = 2**31  # steps between DeepSpeed's own progress lines
LARGEST_BUCKET = 500_000_000  # elements


def learning_rate(step: int, total_steps: int, options: OptimizerConfig) -> float:
    """Linear warm-up, then a cosine from `lr` to `lr * min_lr_fraction` at the last step. Steps count from 0."""
    warmup = round(options.warmup_fraction * total_steps)
    if step < warmup:
        return options.lr * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup - 1))
    floor = options.min_lr_fraction
    return options.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def uses_cuda() -> bool:
    """Whether a learner in this process computes on a GPU: there is one, and DS_ACCELERATOR does not exclude it."""
    import torch  # seconds, which what only plans a run does not take

    return torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"


def deepspeed_settings(
    config: LearnerConfig, dtype: str, num_parameters: int, *, on_cuda: bool | None = None
) -> dict[str, Any]:
    """DeepSpeed's configuration: the user's extra keys, ours over them.

    Args:
        on_cuda: whether the learner computes on a GPU; None: whether this process would.
    Raises:
        ConfigError: `learner.deepspeed_config` is not a readable JSON or YAML mapping.
    """
    on_cuda = uses_cuda() if on_cuda is None else on_cuda
    extra = _read_extra(config.deepspeed_config)
    for key in ("optimizer", "scheduler"):
        if extra.pop(key, None) is not None:
            log.warning("learner.deepspeed_config: %r is ignored, see learner.optimizer", key)
    bucket = min(num_parameters, LARGEST_BUCKET)  # DeepSpeed allocates buckets at full size
    sizes = {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket, "overlap_comm": on_cuda}
    return {
        **extra,
        "train_micro_batch_size_per_gpu": 1,  # nominal: the learner cuts batches itself
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optimizer.max_grad_norm,
        "steps_per_print": QUIET,
        "bf16": {"enabled": dtype == "bfloat16"},
        **_accumulation(config, dtype, extra),
        "zero_optimization": {**sizes, **extra.get("zero_optimization", {}), "stage": config.zero_stage},
    }


def offloads(settings: Mapping[str, Any], key: str) -> bool:
    """Whether DeepSpeed keeps off the device what the key says: "offload_optimizer" or "offload_param"."""
    given = settings["zero_optimization"].get(key)
    return isinstance(given, Mapping) and given.get("device", "none") != "none"


def steps_fused(settings: Mapping[str, Any], device_type: str) -> bool:
    """Whether AdamW steps in one kernel per list of parameters, without temporaries: where its state lies on a GPU.

    On a CPU it would round otherwise than the loop that runs have been compared by.
    """
    return device_type == "cuda" and not offloads(settings, "offload_optimizer")


def inference_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a model beside the trained one that has no optimizer."""
    zero = {key: value for key, value in settings["zero_optimization"].items() if key != "offload_optimizer"}
    return {**settings, "zero_optimization": zero}


def _accumulation(config: LearnerConfig, dtype: str, extra: dict[str, Any]) -> dict[str, Any]:
    """Gradients of micro-batches add up in float32: in bfloat16 each addition would round away what is small.

    At stages 0 and 1 DeepSpeed would take another optimizer for that, whose state is not the one kept in checkpoints.
    """
    if dtype != "bfloat16" or config.zero_stage < 2:
        return {}
    return {"data_types": {"grad_accum_dtype": "fp32", **extra.get("data_types", {})}}


def _read_extra(path: str) -> dict[str, Any]:
    if not path:
        return {}
    try:
        text = found_file(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"learner.deepspeed_config: {path}: {error}") from error
    text = text.expandtabs() if path.endswith(".json") else text  # JSON is YAML, but for tabs
    return plain_yaml(text, f"learner.deepspeed_config: {path}")
