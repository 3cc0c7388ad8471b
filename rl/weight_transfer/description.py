"""What is known of weights without having them: names, types, shapes, and how they are dealt into buckets."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class WeightTensor:
    """Name, type and shape of one parameter."""

    name: str  # as in the Hugging Face checkpoint
    dtype: str  # torch's name, e.g. "bfloat16"
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.torch_dtype.itemsize

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type."""
        return getattr(torch, self.dtype)


def dtype_name(dtype: torch.dtype) -> str:
    """As in WeightTensor.dtype."""
    return str(dtype).removeprefix("torch.")


def in_buckets(tensors: Iterable[WeightTensor], bucket_bytes: int) -> list[tuple[WeightTensor, ...]]:
    """Parameters in order, in buckets of about `bucket_bytes`; a parameter is never split."""
    buckets, bucket, size = [], [], 0
    for tensor in tensors:
        bucket.append(tensor)
        size += tensor.nbytes
        if size >= bucket_bytes:
            buckets.append(tuple(bucket))
            bucket, size = [], 0
    return [*buckets, tuple(bucket)] if bucket else buckets
