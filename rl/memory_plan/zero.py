"""What DeepSpeed's ZeRO keeps of weights, gradients and optimizer on a rank, and what it takes while it works.

Read off deepspeed 0.19's stage_1_and_2.py and stage3.py with the settings that rl.learner.settings makes, and measured
(benchmarks/memory_plan.py). Weights are kept once in the policy's type and once in float32 (masters) beside AdamW's
moments; only what is trained has masters, moments and gradients.

Legend: b bytes of a value in the policy's type · R ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rl.learner.settings import offloads

FLOAT = 4
STAGE_3 = {  # deepspeed's defaults, elements
    "stage3_max_live_parameters": 1_000_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_param_persistence_threshold": 100_000,
}
SUB_GROUP = 1_000_000_000  # elements of a rank that stage 3 steps at a time


@dataclass(frozen=True, slots=True)
class Parameters:
    """Of a policy, in elements."""

    trained: int
    frozen: int
    largest: int  # parameter that is trained
    layer: int  # trained parameters whose gradients exist at once before they are put into a bucket

    @property
    def all(self) -> int:
        """Trained or not."""
        return self.trained + self.frozen


@dataclass(frozen=True, slots=True)
class ZeroMemory:
    """Bytes of one rank; `host` of those that CPU offload moves from the device."""

    weights: float
    gathered: float  # by stage 3, for the layers at work and those that come next
    masters_and_moments: float
    gradients: float  # kept from micro-batch to micro-batch
    buckets: float  # that gradients are put into, and one layer's gradients on the way there
    reducing: float  # while a full bucket is reduced, beside it
    until_full: float  # share of the backward pass until then
    stepping: float  # while the optimizer steps, in place of gradients and buckets: gradients in float32, AdamW's own
    loading: float  # at the worst moment of the start
    host: float


def zero_memory(
    parameters: Parameters, ranks: int, itemsize: int, settings: Mapping[str, Any], *, cuda: bool
) -> ZeroMemory:
    """Of one rank.

    Args:
        itemsize: b.
        settings: DeepSpeed's, as rl.learner.settings makes them.
    """
    zero = settings["zero_optimization"]
    stage = int(zero["stage"])
    accumulated = FLOAT if settings.get("data_types", {}).get("grad_accum_dtype") == "fp32" else itemsize
    if stage == 0:
        return _stage_0(parameters, itemsize, cuda=cuda)
    of_stage = _stage_3 if stage == 3 else _stage_1_or_2
    return of_stage(parameters, ranks, itemsize, accumulated, settings, cuda=cuda)


def _stage_0(parameters: Parameters, itemsize: int, *, cuda: bool) -> ZeroMemory:
    """Everything whole on every rank; in float32 the weights are their own masters."""
    trained = parameters.trained
    return ZeroMemory(
        weights=parameters.all * itemsize,
        gathered=0,
        masters_and_moments=2 * FLOAT * trained,
        gradients=trained * itemsize,
        buckets=0,
        reducing=trained * itemsize,  # flattened for one all-reduce
        until_full=1.0,
        stepping=trained * itemsize + _adamw(trained, cuda=cuda),
        loading=0,
        host=0,
    )


def _stage_1_or_2(
    parameters: Parameters, ranks: int, itemsize: int, accumulated: int, settings: Mapping[str, Any], *, cuda: bool
) -> ZeroMemory:
    """Masters, moments and (2) gradients cut up over ranks; weights whole."""
    zero, trained, share = settings["zero_optimization"], parameters.trained, parameters.trained / ranks
    is_offloaded = offloads(settings, "offload_optimizer")
    bucket = min(int(zero["reduce_bucket_size"]), trained)
    buffers = 2 if zero.get("overlap_comm") else 1
    reducing = bucket * itemsize
    if int(zero["stage"]) == 1:
        gradients = trained * itemsize
        left = gradients / ranks
    elif accumulated != itemsize:
        gradients, left = share * accumulated, 0.0
    else:  # micro-batches are added from a partition of their own
        gradients, reducing, left = share * accumulated, reducing + share * accumulated, share * accumulated
    return ZeroMemory(
        weights=parameters.all * itemsize,
        gathered=0,
        masters_and_moments=0 if is_offloaded else 3 * FLOAT * share,
        gradients=gradients,
        buckets=(buffers * bucket + parameters.layer + (parameters.largest if is_offloaded else 0)) * itemsize,
        reducing=reducing,
        until_full=bucket / trained,
        stepping=gradients if is_offloaded else FLOAT * share + left + _adamw(share, cuda=cuda),
        loading=trained * itemsize,  # laid end to end beside the original
        host=(4 * FLOAT + itemsize) * share + _adamw(share, cuda=False) if is_offloaded else 0,
    )


def _stage_3(
    parameters: Parameters, ranks: int, itemsize: int, accumulated: int, settings: Mapping[str, Any], *, cuda: bool
) -> ZeroMemory:
    """Weights cut up as well, gathered when layers need them and kept up to a limit."""
    zero, share = settings["zero_optimization"], parameters.trained / ranks
    is_offloaded = offloads(settings, "offload_optimizer")
    limits = {name: int(zero.get(name, default)) for name, default in STAGE_3.items()}
    gathered = min(parameters.all, limits["stage3_max_live_parameters"] + limits["stage3_prefetch_bucket_size"])
    bucket = min(int(zero["reduce_bucket_size"]), parameters.trained)
    gradients, stepped = share * accumulated + bucket * itemsize, min(share, SUB_GROUP)
    masters = 0 if itemsize == FLOAT and not is_offloaded else FLOAT * share  # the weights' own, in float32
    return ZeroMemory(
        weights=0 if offloads(settings, "offload_param") else parameters.all * itemsize / ranks,
        gathered=gathered * itemsize,
        masters_and_moments=0 if is_offloaded else masters + 2 * FLOAT * share,
        gradients=gradients,
        buckets=parameters.layer * itemsize,
        reducing=bucket * itemsize,
        until_full=bucket / parameters.trained,
        stepping=gradients + (0 if is_offloaded else FLOAT * stepped + _adamw(stepped, cuda=cuda)),
        loading=parameters.largest * itemsize,  # parameters are cut up one by one
        host=4 * FLOAT * share + _adamw(stepped, cuda=False) if is_offloaded else 0,
    )


def _adamw(elements: float, *, cuda: bool) -> float:
    """What torch's AdamW makes beside its moments: fused, nothing; on the CPU a square root of them and a quotient."""
    return 0.0 if cuda else 2 * FLOAT * elements
