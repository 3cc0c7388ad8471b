"""What an optimizer step reports: numbers gathered micro-batch by micro-batch on every rank, reduced once.

Legend: B sequences · T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from itertools import chain
from operator import add

import torch
import torch.distributed as dist
from torch import Tensor

from rl.algorithm.learner_batch import LearnerBatch
from rl.algorithm.loss import LossTerms
from rl.learner.frozen_trunk import FrozenTrunk
from rl.learner.mini_batch import MiniBatch
from rl.trajectory import Segment, TrainingSample

Number = Tensor | float

SEGMENTS = {"sampling": Segment.SAMPLING, "reasoning": Segment.REASONING}


class Tally:
    """Sums, weighted means and maxima over micro-batches and ranks. All ranks must name the same numbers.

    Tensors stay where they are until `reduced` fetches all of them together: a number never waits for the device.

    tally.mean("policy/entropy", entropy_BT.sum(), count=mask_BT.sum())
    tally.peak("parity/max/sampling", difference_BT.max())
    tally.reduced(device)                    # collective

    Args:
        counts: False: sums and means leave this rank's numbers out, since another rank has the same.
    """

    def __init__(self, *, counts: bool = True) -> None:
        self._counts = counts
        self._added: dict[tuple[str, str], list[Number]] = {}  # by kind ("sum", "total" or "count") and name
        self._peaks: dict[str, list[Number]] = {}

    def sum(self, name: str, value: Number) -> None:
        """Add to a number that is reported as its sum."""
        self._added.setdefault(("sum", name), []).append(_without_graph(value))

    def mean(self, name: str, total: Number, count: Number) -> None:
        """Add to a number that is reported as sum of totals / sum of counts; left out if nothing was counted."""
        self._added.setdefault(("total", name), []).append(_without_graph(total))
        self._added.setdefault(("count", name), []).append(_without_graph(count))

    def peak(self, name: str, value: Number) -> None:
        """Report the largest value; left out if there was none (minus infinity)."""
        self._peaks.setdefault(name, []).append(_without_graph(value))

    def reduced(self, device: torch.device) -> dict[str, float]:
        """Every number over all ranks; collective. Sums are of 64 bits, in the order in which numbers came."""
        added, largest = sorted(self._added), sorted(self._peaks)
        given = [*(self._added[key] for key in added), *(self._peaks[name] for name in largest)]
        fetched = iter(_fetched(list(chain.from_iterable(given))))
        mine = [[next(fetched) for _ in numbers] for numbers in given]
        sums = [reduce(add, numbers, 0.0) if self._counts else 0.0 for numbers in mine[: len(added)]]
        sums_N = torch.tensor(sums, dtype=torch.float64, device=device)
        peaks = [_largest(numbers) for numbers in mine[len(added) :]]
        peaks_N = torch.tensor(peaks, dtype=torch.float64, device=device)
        dist.all_reduce(sums_N, op=dist.ReduceOp.SUM)
        dist.all_reduce(peaks_N, op=dist.ReduceOp.MAX)
        over_ranks = torch.cat([sums_N, peaks_N]).tolist()
        found = dict(zip([*added, *(("peak", name) for name in largest)], over_ranks, strict=True))
        numbers = {}
        for (kind, name), value in found.items():
            if kind == "total" and (count := found["count", name]) > 0:
                numbers[name] = value / count
            elif kind == "sum" or (kind == "peak" and value != -math.inf):
                numbers[name] = value
        return numbers


def _without_graph(value: Number) -> Number:
    return value.detach() if isinstance(value, Tensor) else value


def _largest(numbers: Sequence[float]) -> float:
    """NaN if one is."""
    return math.nan if any(map(math.isnan, numbers)) else max(numbers)


def _fetched(numbers: Sequence[Number]) -> list[float]:
    """Numbers as floats; the tensors among them come from each device in one transfer."""
    fetched: list[float] = [math.nan if isinstance(number, Tensor) else float(number) for number in numbers]
    devices: dict[torch.device, dict[torch.dtype, list[int]]] = {}
    for index, number in enumerate(numbers):
        if isinstance(number, Tensor):
            devices.setdefault(number.device, {}).setdefault(number.dtype, []).append(index)
    for types in devices.values():
        stacked = [torch.stack([numbers[index] for index in indices]).double() for indices in types.values()]
        for index, value in zip(chain.from_iterable(types.values()), torch.cat(stacked).tolist(), strict=True):
            fetched[index] = value
    return fetched


def tally_policy(tally: Tally, batch: LearnerBatch, terms: LossTerms, entropy_BT: Tensor) -> None:
    """How far the policy is from the one ratios are taken against, over the tokens learned from."""
    mask_BT = batch.loss_mask_BT
    learned = mask_BT.nonzero(as_tuple=True)  # once: a mask as an index waits for the device each time
    count = mask_BT.sum()
    tally.mean("policy/entropy", entropy_BT[learned].sum(), count)
    tally.mean("policy/ratio_mean", terms.ratio_BT[learned].sum(), count)
    tally.mean("policy/tis_weight_mean", terms.tis_weight_BT[learned].sum(), count)
    clipped_BT = terms.clipped_low_BT | terms.clipped_high_BT
    for name, segment in SEGMENTS.items():
        here_BT = mask_BT & (batch.segment_ids_BT == segment)
        tally.mean(f"policy/clip_fraction/{name}", (clipped_BT & here_BT).sum(), here_BT.sum())


def tally_parity(tally: Tally, batch: LearnerBatch, logp_BT: Tensor, is_own_BT: Tensor) -> None:
    """|engine - learner| in nat over the tokens learned from; only while the policy is still the one that sampled.

    Args:
        is_own_BT: bool; tokens that this very policy sampled, not an older one.
    """
    compared_BT = batch.loss_mask_BT & is_own_BT
    tally.mean("parity/compared", compared_BT.sum(), batch.loss_mask_BT.sum())
    difference_BT = (logp_BT.detach() - batch.behavior_logprobs_BT).abs()
    for name, segment in SEGMENTS.items():
        difference_N = difference_BT[compared_BT & (batch.segment_ids_BT == segment)]
        tally.mean(f"parity/mean/{name}", difference_N.sum(), len(difference_N))
        tally.peak(f"parity/max/{name}", difference_N.max() if len(difference_N) else -math.inf)


def tally_tower(tally: Tally, samples: Sequence[TrainingSample], passes: int, trunk: FrozenTrunk | None) -> None:
    """How often vision towers encoded a block, and how much of what was asked for was kept.

    Args:
        passes: of whole towers on this rank, one for each block; of a trunk that is run apart they are added.
    """
    blocks = len({frames.digest for sample in samples for frames in sample.videos})
    if trunk is not None:
        use = trunk.taken_use()
        passes += use.encoded
        tally.mean("update/vision_cache_hits", use.asked - use.encoded, use.asked)
        tally.peak("update/vision_cache_bytes", trunk.cache.num_bytes)
    tally.mean("update/tower_passes_per_block", passes, blocks)


def tally_work(tally: Tally, parts: Sequence[MiniBatch], samples: Sequence[TrainingSample], seconds: float) -> None:
    """How much was learned from, what of it was computed, and how long it took.

    Shared are tokens of samples that were not computed, since another sample begins with them; padding are tokens
    computed for the other ranks' sake only.
    """
    tokens = sum(len(sample.token_ids) for sample in samples)
    padding = sum(part.padding_tokens for part in parts)
    computed = sum(part.computed_tokens for part in parts) + padding
    tally.sum("update/trajectories", len(samples))
    tally.sum("update/tokens", tokens)
    tally.sum("update/learned_tokens", sum(sum(sample.loss_mask) for sample in samples))
    tally.sum("update/computed_tokens", computed)
    tally.mean("update/padding_share", padding, computed)
    tally.mean("update/shared_prefix_share", tokens - (computed - padding), tokens)
    tally.peak("update/micro_batches", sum(map(len, parts)))
    tally.peak("update/seconds", seconds)
