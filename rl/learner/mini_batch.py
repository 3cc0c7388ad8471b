"""One optimizer step's samples on this rank, cut into micro-batches; number and denominators agreed upon by all ranks.

A rank with fewer micro-batches than another makes up the difference with empty ones, which run through every part of
the model (the vision tower included) and contribute no gradient.

Legend: B samples of a micro-batch · T tokens of a sample, right-padded · S sampled tokens of one sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from rl.algorithm.batch import loss_totals
from rl.algorithm.learner_batch import LearnerBatch, collate, sampled_values
from rl.algorithm.loss import LossTotals
from rl.algorithm.packing import Limits, alone, micro_batches, with_common_openings
from rl.policy.processor import Processor
from rl.trajectory import TrainingSample

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True, eq=False)
class MiniBatch:
    """This rank's part of one optimizer step."""

    batches: tuple[LearnerBatch, ...]  # equally many on every rank
    totals: LossTotals  # of all ranks
    order: tuple[int, ...]  # which sample each row is, batch after batch; the rows of empty ones, the last, are none

    def by_sample(self, rows: Iterable[Row]) -> list[Row]:
        """Per-row results, put into the order of the samples."""
        placed = dict(zip(self.order, rows, strict=False))
        return [placed[index] for index in range(len(self.order))]


def build_mini_batch(
    samples: Sequence[TrainingSample],
    limits: Limits,
    processor: Processor,
    device: torch.device,
    *,
    shared_prefix: bool = True,
) -> MiniBatch:
    """Micro-batches, the largest pieces first. Collective.

    Args:
        shared_prefix: what samples begin with alike is computed once.
    """
    mine = loss_totals(samples)
    sharings = with_common_openings(samples, processor) if shared_prefix else alone(samples)
    cut = micro_batches(sharings, limits)
    most = _all_reduce([len(cut)], dist.ReduceOp.MAX, device)[0]
    totals = LossTotals(*_all_reduce([mine.num_sequences, mine.num_tokens], dist.ReduceOp.SUM, device))
    cut += [()] * (max(most, 1) - len(cut))
    order = tuple(member for batch in cut for sharing in batch for member in sharing.members)
    return MiniBatch(tuple(collate(samples, processor, device, batch) for batch in cut), totals, order)


def consecutive_parts(samples: Sequence[TrainingSample], count: int) -> list[Sequence[TrainingSample]]:
    """`count` parts in order, equal but for one sample; siblings stay together as far as possible."""
    ends = [round(len(samples) * index / count) for index in range(count + 1)]
    return [samples[first:last] for first, last in pairwise(ends)]


def sampled_logprobs(parts: Sequence[MiniBatch], logp_BT: Sequence[Tensor]) -> list[np.ndarray | None]:
    """Log-probs (S, float32, nat) of every sample, in their order; None for those of later parts than the first.

    Args:
        logp_BT: per micro-batch of the first part; empty if none was computed.
    """
    first, *later = parts
    rows = [row for pair in zip(first.batches, logp_BT, strict=False) for row in sampled_values(*pair)]
    rows = first.by_sample(rows) if rows else [None] * len(first.order)
    return rows + [None] * sum(len(part.order) for part in later)


def _all_reduce(values: list[int], op: dist.ReduceOp, device: torch.device) -> list[int]:
    tensor = torch.tensor(values, dtype=torch.long, device=device)
    dist.all_reduce(tensor, op=op)
    return tensor.tolist()
