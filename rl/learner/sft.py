"""Supervised fine-tuning (SFT): conversations and retrieval traces are imitated, in a cold start the latter.

What others say is context, frames included, as in reinforcement learning: the loss covers only tokens that the policy
would sample. The loop knows no workers; it drives anything that has `supervise`. Samples are made when they are needed,
so that the pixels of a large data set are never in memory together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np

from rl.algorithm.segments import flatten
from rl.trajectory import Segment, TrainingSample, TrajectoryGroup

TAIL_SHARE = 0.1  # of the steps: the mean over the last ones is reported as the final loss


class SftTrainer(Protocol):
    """Takes one optimizer step on a batch and returns its metrics, "loss/nll" (nat per token) among them."""

    def supervise(self, samples: Sequence[TrainingSample]) -> Mapping[str, float]:
        """One step towards the samples' own tokens."""


SamplesOf = Callable[[Iterable[Sequence[int]]], Iterator[Sequence[TrainingSample]]]  # batches of indices -> samples


@dataclass(frozen=True, slots=True)
class SftLosses:
    """In nat per token."""

    first: float  # of the first step taken
    last: float  # a mean over the last tenth of the steps


def run_sft(
    trainer: SftTrainer,
    samples_of: SamplesOf,
    *,
    num_samples: int,
    steps: int,
    batch_size: int,
    seed: int,
    after_step: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None,
    first: int = 0,
) -> SftLosses:
    """Train for a number of steps; the order of samples follows from the seed alone.

    Args:
        samples_of: the samples of each batch of indices, in order; it may work ahead.
        num_samples: indices are drawn from 0 … num_samples - 1.
        batch_size: samples per optimizer step, over all ranks.
        after_step: called with (steps done, the step's metrics); what it raises ends the loop.
        first: steps that have been taken already, by a trainer whose state was saved then.
    Raises:
        ValueError: no sample, no step, or an empty batch.
    """
    losses = []
    drawn = batches(num_samples, steps=steps, batch_size=batch_size, seed=seed)
    for step, samples in enumerate(samples_of(islice(drawn, first, None)), start=first + 1):
        metrics = trainer.supervise(samples)
        losses.append(metrics["loss/nll"])
        after_step(step, metrics)
    tail = losses[-max(1, round(TAIL_SHARE * steps)) :]
    return SftLosses(losses[0], float(np.mean(tail)))


def batches(num_samples: int, *, steps: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Indices of each step's batch: epoch after epoch in fresh random order, every batch full.

    Raises:
        ValueError: no sample, no step, or an empty batch.
    """
    if min(num_samples, steps, batch_size) < 1:
        raise ValueError(f"supervision needs samples, steps and a batch size: {num_samples}, {steps}, {batch_size}")
    rng, pending = np.random.default_rng(seed), []
    for _ in range(steps):
        while len(pending) < batch_size:
            pending += rng.permutation(num_samples).tolist()
        yield pending[:batch_size]
        pending = pending[batch_size:]


def supervised_sample(group: TrajectoryGroup) -> TrainingSample:
    """A rolled-out trace as a training sample: its completions are learned, what the environment inserted is not."""
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
