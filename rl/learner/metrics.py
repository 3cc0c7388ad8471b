"""What an optimizer step reports: numbers gathered micro-batch by micro-batch on every rank, reduced once.

Legend: B sequences · T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from rl.algorithm.batch import LearnerBatch
from rl.algorithm.loss import LossTerms
from rl.learner.mini_batch import MiniBatch
from rl.trajectory import Segment, TrainingSample

SEGMENTS = {"sampling": Segment.SAMPLING, "reasoning": Segment.REASONING}


class Tally:
    """Sums, weighted means and maxima over micro-batches and ranks. All ranks must name the same numbers.

    tally.mean("policy/entropy", entropy_BT.sum(), count=mask_BT.sum())
    tally.peak("parity/max/sampling", difference_BT.max())
    tally.reduced(device)                    # collective
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._means: dict[str, tuple[float, float]] = {}
        self._peaks: dict[str, float] = {}

    def sum(self, name: str, value: Tensor | float) -> None:
        """Add to a number that is reported as its sum."""
        self._sums[name] = self._sums.get(name, 0.0) + float(value)

    def mean(self, name: str, total: Tensor | float, count: Tensor | float) -> None:
        """Add to a number that is reported as sum of totals / sum of counts; left out if nothing was counted."""
        old_total, old_count = self._means.get(name, (0.0, 0.0))
        self._means[name] = (old_total + float(total), old_count + float(count))

    def peak(self, name: str, value: Tensor | float) -> None:
        """Report the largest value; left out if there was none (minus infinity)."""
        value, known = float(value), self._peaks.get(name, -math.inf)
        self._peaks[name] = value if value > known or math.isnan(value) else known

    def reduced(self, device: torch.device) -> dict[str, float]:
        """Every number over all ranks; collective."""
        sums = self._all_reduced(self._sums, dist.ReduceOp.SUM, device)
        totals = self._all_reduced({name: total for name, (total, _) in self._means.items()}, dist.ReduceOp.SUM, device)
        counts = self._all_reduced({name: count for name, (_, count) in self._means.items()}, dist.ReduceOp.SUM, device)
        means = {name: totals[name] / count for name, count in counts.items() if count > 0}
        peaks = self._all_reduced(self._peaks, dist.ReduceOp.MAX, device)
        return sums | means | {name: value for name, value in peaks.items() if value != -math.inf}

    @staticmethod
    def _all_reduced(values: dict[str, float], op: dist.ReduceOp, device: torch.device) -> dict[str, float]:
        names = sorted(values)
        values_N = torch.tensor([values[name] for name in names], dtype=torch.float64, device=device)
        dist.all_reduce(values_N, op=op)
        return dict(zip(names, values_N.tolist(), strict=True))


def tally_policy(tally: Tally, batch: LearnerBatch, terms: LossTerms, entropy_BT: Tensor) -> None:
    """How far the policy is from the one ratios are taken against, over the tokens learned from."""
    mask_BT = batch.loss_mask_BT
    count = mask_BT.sum()
    tally.mean("policy/entropy", entropy_BT[mask_BT].sum(), count)
    tally.mean("policy/ratio_mean", terms.ratio_BT[mask_BT].sum(), count)
    tally.mean("policy/tis_weight_mean", terms.tis_weight_BT[mask_BT].sum(), count)
    clipped_BT = terms.clipped_low_BT | terms.clipped_high_BT
    for name, segment in SEGMENTS.items():
        here_BT = mask_BT & (batch.segment_ids_BT == segment)
        tally.mean(f"policy/clip_fraction/{name}", clipped_BT[here_BT].sum(), here_BT.sum())


def tally_parity(tally: Tally, batch: LearnerBatch, logp_BT: Tensor) -> None:
    """|engine - learner| in nat over the tokens learned from; only while the policy is still the one that sampled."""
    difference_BT = (logp_BT.detach() - batch.behavior_logprobs_BT).abs()
    for name, segment in SEGMENTS.items():
        difference_N = difference_BT[batch.loss_mask_BT & (batch.segment_ids_BT == segment)]
        tally.mean(f"parity/mean/{name}", difference_N.sum(), len(difference_N))
        tally.peak(f"parity/max/{name}", difference_N.max() if len(difference_N) else -math.inf)


def tally_work(tally: Tally, parts: Sequence[MiniBatch], samples: Sequence[TrainingSample], seconds: float) -> None:
    """How much was learned from, how much of it was padding, and how long it took."""
    tokens = sum(len(sample.token_ids) for sample in samples)
    places = sum(batch.input_ids_BT.numel() for part in parts for batch in part.batches)
    tally.sum("update/trajectories", len(samples))
    tally.sum("update/tokens", tokens)
    tally.sum("update/learned_tokens", sum(sum(sample.loss_mask) for sample in samples))
    tally.mean("update/padding_share", places - tokens, places)
    tally.peak("update/micro_batches", sum(len(part.batches) for part in parts))
    tally.peak("update/seconds", seconds)
