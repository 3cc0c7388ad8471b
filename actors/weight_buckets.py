"""Weights in transit: parameters packed into flat buckets in the object store, each parameter with its checksum."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import ray
import torch
from ray.exceptions import RayError

FETCH_S = 120.0  # to get one bucket out of the object store, possibly from another node


class WeightsLostError(RuntimeError):
    """Weights are no longer in the object store: the learner or node that owned them is gone."""


@dataclass(frozen=True, slots=True)
class WeightTensor:
    """Name, shape and checksum of one parameter, and its offset in a bucket."""

    name: str  # as in the Hugging Face checkpoint
    dtype: str  # torch's name, e.g. "bfloat16"
    shape: tuple[int, ...]
    offset: int  # bytes
    sha256: str

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * getattr(torch, self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class WeightBucket:
    """Parameters packed into one flat uint8 array in the object store."""

    tensors: tuple[WeightTensor, ...]
    data: ray.ObjectRef  # uint8 array


def pack(named: Iterable[tuple[str, torch.Tensor]], bucket_bytes: int) -> list[WeightBucket]:
    """Put parameters into buckets of about `bucket_bytes`; a parameter is never split."""
    buckets: list[WeightBucket] = []
    pending: list[tuple[WeightTensor, np.ndarray]] = []
    size = 0
    for name, tensor in named:
        flat = _bytes_of(tensor)
        pending.append((_describe(name, tensor, size, flat), flat))
        size += flat.nbytes
        if size >= bucket_bytes:
            buckets.append(_seal(pending))
            pending, size = [], 0
    if pending:
        buckets.append(_seal(pending))
    return buckets


def unpack(buckets: Sequence[WeightBucket]) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters of all buckets, one bucket fetched at a time: the memory needed does not grow with the policy.

    Raises:
        WeightsLostError: a bucket is no longer in the object store.
    """
    for bucket in buckets:
        try:
            data = ray.get(bucket.data, timeout=FETCH_S)
        except RayError as error:
            raise WeightsLostError(f"a bucket of weights could not be fetched: {type(error).__name__}") from error
        for tensor in bucket.tensors:
            yield tensor.name, _view(tensor, data)


def _view(tensor: WeightTensor, data: np.ndarray) -> torch.Tensor:
    raw = data[tensor.offset : tensor.offset + tensor.nbytes]
    # a copy: torch refuses read-only memory, and the engine's loader may keep what it is given
    return torch.from_numpy(raw.copy()).view(getattr(torch, tensor.dtype)).view(tensor.shape)


def _bytes_of(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()


def _describe(name: str, tensor: torch.Tensor, offset: int, flat: np.ndarray) -> WeightTensor:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return WeightTensor(name, dtype, tuple(tensor.shape), offset, hashlib.sha256(flat).hexdigest())


def _seal(pending: list[tuple[WeightTensor, np.ndarray]]) -> WeightBucket:
    """One put per bucket: numpy arrays cross the object store at memory speed, torch tensors do not."""
    data = np.concatenate([flat for _, flat in pending])
    return WeightBucket(tuple(tensor for tensor, _ in pending), ray.put(data))
