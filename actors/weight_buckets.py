"""Weights in the object store: parameters in buckets, each with the checksum of what the learner holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rl.weight_transfer.description import WeightTensor

if TYPE_CHECKING:
    import ray


class WeightsLostError(RuntimeError):
    """Weights are no longer in the object store: the learner or node that owned them is gone."""


@dataclass(frozen=True, slots=True)
class WeightBucket:
    """Parameters that travel together, as one flat uint8 array each."""

    tensors: tuple[WeightTensor, ...]
    checksums: tuple[str, ...]  # of the tensors, in order
    data: ray.ObjectRef  # list of the arrays


def checksums(buckets: Sequence[WeightBucket]) -> dict[str, str]:
    """Of every parameter, as the learners hold it, by name."""
    pairs = (zip(bucket.tensors, bucket.checksums, strict=True) for bucket in buckets)
    return {tensor.name: sums for bucket in pairs for tensor, sums in bucket}
