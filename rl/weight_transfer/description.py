"""What is known of weights without having them: names, types, shapes, and how they are dealt into buckets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")


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
        import torch  # which the driver does without

        return getattr(torch, self.dtype)


def dtype_name(dtype: torch.dtype) -> str:
    """As in WeightTensor.dtype."""
    return str(dtype).removeprefix("torch.")


def in_buckets(tensors: Iterable[WeightTensor], bucket_bytes: int) -> list[tuple[WeightTensor, ...]]:
    """Parameters in order, in buckets of about `bucket_bytes`; a parameter is never split."""
    return [tuple(bucket) for bucket in filled(tensors, bucket_bytes, lambda tensor: tensor.nbytes)]


def filled(items: Iterable[Item], size: int, size_of: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Items in order, in lists that end with the item that brings them to `size`; lazily."""
    bucket, taken = [], 0
    for item in items:
        bucket.append(item)
        taken += size_of(item)
        if taken >= size:
            yield bucket
            bucket, taken = [], 0
    if bucket:
        yield bucket
