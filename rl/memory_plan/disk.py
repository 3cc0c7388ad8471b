"""What a run writes: checkpoints kept, and the converted copy of a stock checkpoint."""

from __future__ import annotations

from rl.config.run import RunConfig
from rl.memory_plan.host import MASTERS_AND_MOMENTS
from rl.memory_plan.learner import ITEMSIZE


def checkpoint_bytes(config: RunConfig, parameters: int, trained: int) -> int:
    """One checkpoint: the policy in its own type, masters and moments in float32."""
    return parameters * ITEMSIZE[config.policy.dtype] + trained * MASTERS_AND_MOMENTS


def most_checkpoints(config: RunConfig) -> int:
    """Checkpoints on disk at once."""
    trainer = config.trainer
    kept = trainer.keep_checkpoints + 1  # the next one is written before the oldest goes
    kept += bool(trainer.best_metric and trainer.eval_tasks)  # the best one stays
    return kept + (trainer.steps // trainer.keep_every if trainer.keep_every else 0)
