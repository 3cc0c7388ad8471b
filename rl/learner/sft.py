"""The supervised stage: imitate retrieval traces until the policy speaks the protocol.

Injected frames are context, as in reinforcement learning: only what the policy would have written is learned from. The
loop knows nothing of workers; whoever has `supervise` can be taught. Samples are made while they are needed: a large
data set's pixels are never in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from rl.algorithm.segments import flatten
from rl.trajectory import Segment, TrainingSample, TrajectoryGroup

TAIL_SHARE = 0.1  # of the steps: the mean over the last ones is reported as the final loss


class Pupil(Protocol):
    """Takes one optimizer step on a batch and says how it went; "loss/nll" in nat per token is among the numbers."""

    def supervise(self, samples: Sequence[TrainingSample]) -> Mapping[str, float]: ...


LessonsOf = Callable[[Iterable[Sequence[int]]], Iterator[Sequence[TrainingSample]]]


def run_cold_start(
    pupil: Pupil,
    lessons_of: LessonsOf,
    *,
    num_samples: int,
    steps: int,
    batch_size: int,
    seed: int,
    progress: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None,
) -> dict[str, float]:
    """Teach for a number of steps; the order of samples follows from the seed alone.

    Args:
        lessons_of: the samples of each batch of indices, in order; it may work ahead.
        num_samples: indices run below it.
        progress: called after each step with (steps done, its metrics).
    Returns:
        "cold_start/nll_first" and "cold_start/nll_last" (nat per token, the latter a mean over the last tenth).
    Raises:
        ValueError: no sample, no step, or an empty batch.
    """
    losses = []
    lessons = lessons_of(batches(num_samples, steps=steps, batch_size=batch_size, seed=seed))
    for step, samples in enumerate(lessons, start=1):
        metrics = pupil.supervise(samples)
        losses.append(metrics["loss/nll"])
        progress(step, metrics)
    tail = losses[-max(1, round(TAIL_SHARE * steps)) :]
    return {
        "cold_start/nll_first": losses[0],
        "cold_start/nll_last": float(np.mean(tail)),
        "cold_start/samples": float(num_samples),
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


def supervised_sample(group: TrajectoryGroup) -> TrainingSample:
    """A played trace as a sample: every token the trace wrote is learned, what was inserted is not."""
    flat = flatten(group.trajectories_G[0], group.coarse_frames)
    written = tuple(segment != Segment.CONTEXT for segment in flat.segment_ids)
    return TrainingSample(
        token_ids=flat.token_ids,
        segment_ids=flat.segment_ids,
        turn_ids=flat.turn_ids,
        behavior_logprobs=flat.behavior_logprobs,
        advantages=tuple(float(w) for w in written),
        loss_mask=written,
        policy_versions=flat.policy_versions,
        videos=flat.videos,
    )
