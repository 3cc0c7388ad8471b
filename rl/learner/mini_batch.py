"""One optimizer step's samples on this rank, cut into micro-batches; number and denominators agreed upon by all ranks.

A rank with fewer micro-batches than another makes up the difference with empty ones, which run through every part of
the model that learns and contribute no gradient.

Legend: B samples of a micro-batch · T tokens of a sample, right-padded · S sampled tokens of one sample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from rl.algorithm.batch import loss_totals
from rl.algorithm.learner_batch import BLANK_TOKENS, LearnerBatch, collate, on_device, sampled_values
from rl.algorithm.loss_totals import LossTotals
from rl.algorithm.packing import Limits, Sharing, alone, micro_batches, with_common_openings
from rl.learner.prefetch import OneAhead
from rl.learner.sequence_parallel import ALONE, SequenceParallel
from rl.policy.processor import Processor
from rl.trajectory import Frames, TrainingSample

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True, eq=False)
class MiniBatch:
    """This rank's part of one optimizer step: what its micro-batches hold. They are made when they are needed."""

    makers: tuple[Callable[[], LearnerBatch], ...]  # of each micro-batch; equally many on every rank
    cut: tuple[tuple[Sharing, ...], ...]  # what each holds; nothing where other ranks have more
    totals: LossTotals  # of all ranks
    order: tuple[int, ...]  # which sample each row is, batch after batch; the rows of empty ones, the last, are none
    # blocks that more than one micro-batch shows, in chunks no larger than a micro-batch's; equally many on every rank
    shared: tuple[tuple[Frames, ...], ...] = ()

    def __len__(self) -> int:
        """Micro-batches."""
        return len(self.makers)

    def prepared(self) -> OneAhead[LearnerBatch]:
        """The micro-batches, one after the other, the next made while one is in use; a context."""
        return OneAhead(self.makers)

    @property
    def computed_tokens(self) -> int:
        """Of samples; those that samples share count once."""
        return sum(sharing.size for batch in self.cut for sharing in batch)

    @property
    def padding_tokens(self) -> int:
        """Computed for the other ranks' sake only."""
        return BLANK_TOKENS * sum(not batch for batch in self.cut)

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
    shared_videos: bool = True,
    parallel: SequenceParallel = ALONE,
) -> MiniBatch:
    """Micro-batches, the largest pieces first. Collective.

    Args:
        shared_prefix: what samples begin with alike is computed once.
        shared_videos: blocks that micro-batches have in common are to be encoded once.
        parallel: the ranks that have the same samples.
    """
    mine = loss_totals(samples)
    sharings = with_common_openings(samples, processor) if shared_prefix else alone(samples)
    cut = micro_batches(sharings, limits)
    shared = _chunks([_blocks_of(samples, batch) for batch in cut]) if shared_videos else []
    most, most_shared = _all_reduce([len(cut), len(shared)], dist.ReduceOp.MAX, device)
    shared += [()] * (most_shared - len(shared))
    counted = [mine.num_sequences, mine.num_tokens] if parallel.counts else [0, 0]
    totals = LossTotals(*_all_reduce(counted, dist.ReduceOp.SUM, device))
    cut += [()] * (max(most, 1) - len(cut))
    order = tuple(member for batch in cut for sharing in batch for member in sharing.members)
    makers = tuple(partial(_made, samples, processor, device, parallel.size, batch) for batch in cut)
    return MiniBatch(makers, tuple(cut), totals, order, tuple(shared))


def _made(
    samples: Sequence[TrainingSample],
    processor: Processor,
    device: torch.device,
    multiple_of: int,
    sharings: Sequence[Sharing],
) -> LearnerBatch:
    return on_device(collate(samples, processor, sharings, multiple_of=multiple_of), device)


def _blocks_of(samples: Sequence[TrainingSample], batch: Sequence[Sharing]) -> dict[str, Frames]:
    """Blocks that a micro-batch shows, by digest."""
    shown = (frames for sharing in batch for member in sharing.members for frames in samples[member].videos)
    return {frames.digest: frames for frames in shown}


def _chunks(blocks_of: Sequence[Mapping[str, Frames]]) -> list[tuple[Frames, ...]]:
    """Blocks of more than one micro-batch, so many together as the micro-batch with most pixels of scenes shows."""
    times_shown = Counter(digest for blocks in blocks_of for digest in blocks)
    known = {digest: frames for blocks in blocks_of for digest, frames in blocks.items()}
    most = max((sum(map(_tower_pixels, blocks.values())) for blocks in blocks_of), default=0)
    chunks: list[tuple[Frames, ...]] = []
    held = most
    for frames in (known[digest] for digest, times in times_shown.items() if times > 1):
        held += _tower_pixels(frames)
        if held > most:
            chunks, held = [*chunks, ()], _tower_pixels(frames)
        chunks[-1] = (*chunks[-1], frames)
    return chunks


def _tower_pixels(frames: Frames) -> int:
    """What a pass of the tower's blocks takes is in proportion to it."""
    return len(frames.scene_lengths) * frames.height * frames.width


def consecutive_parts(samples: Sequence[TrainingSample], count: int) -> list[Sequence[TrainingSample]]:
    """`count` parts in order, equal but for one sample; siblings stay together as far as possible."""
    ends = [round(len(samples) * index / count) for index in range(count + 1)]
    return [samples[first:last] for first, last in pairwise(ends)]


def sampled_logprobs(
    parts: Sequence[MiniBatch], scored: Sequence[tuple[LearnerBatch, Tensor]]
) -> list[np.ndarray | None]:
    """Log-probs (S, float32, nat) of every sample, in their order; None for those of later parts than the first.

    Args:
        scored: the micro-batches of the first part, and log-probs (B, T) of each; empty if none were computed.
    """
    first, *later = parts
    rows = [row for batch, logp_BT in scored for row in sampled_values(batch, logp_BT)]
    rows = first.by_sample(rows) if rows else [None] * len(first.order)
    return rows + [None] * sum(len(part.order) for part in later)


def _all_reduce(values: list[int], op: dist.ReduceOp, device: torch.device) -> list[int]:
    tensor = torch.tensor(values, dtype=torch.long, device=device)
    dist.all_reduce(tensor, op=op)
    return tensor.tolist()
