"""The supervised stage: imitate retrieval traces until the policy speaks the protocol.

Injected frames are context, as in reinforcement learning: only what the policy would have written is learned from. The
loop knows nothing of workers; whoever has `supervise` can be taught.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from rl.trajectory import TrainingSample

TAIL_SHARE = 0.1  # of the steps: the mean over the last ones is reported as the final loss


class Pupil(Protocol):
    """Takes one optimizer step on a batch and says how it went; "loss/nll" in nat per token is among the numbers."""

    def supervise(self, samples: Sequence[TrainingSample]) -> Mapping[str, float]: ...


def run_cold_start(
    pupil: Pupil,
    samples: Sequence[TrainingSample],
    *,
    steps: int,
    batch_size: int,
    seed: int,
    progress: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None,
) -> dict[str, float]:
    """Teach for a number of steps; the order of samples follows from the seed alone.

    Args:
        progress: called after each step with (steps done, its metrics).
    Returns:
        "cold_start/nll_first" and "cold_start/nll_last" (nat per token, the latter a mean over the last tenth).
    Raises:
        ValueError: no sample, no step, or an empty batch.
    """
    losses = []
    for step, indices in enumerate(batches(len(samples), steps=steps, batch_size=batch_size, seed=seed)):
        metrics = pupil.supervise([samples[index] for index in indices])
        losses.append(metrics["loss/nll"])
        progress(step + 1, metrics)
    tail = losses[-max(1, round(TAIL_SHARE * steps)) :]
    return {
        "cold_start/nll_first": losses[0],
        "cold_start/nll_last": float(np.mean(tail)),
        "cold_start/samples": float(len(samples)),
        "cold_start/steps": float(steps),
    }


def batches(num_samples: int, *, steps: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Indices of each step's batch: epoch after epoch in fresh random order, every batch full.

    Raises:
        ValueError: no sample, no step, or an empty batch.
    """
    if min(num_samples, steps, batch_size) < 1:
        raise ValueError(f"cold start needs samples, steps and a batch size: {num_samples}, {steps}, {batch_size}")
    rng, pending = np.random.default_rng(seed), []
    for _ in range(steps):
        while len(pending) < batch_size:
            pending += rng.permutation(num_samples).tolist()
        yield pending[:batch_size]
        pending = pending[batch_size:]
