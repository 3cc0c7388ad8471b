"""Weights into buckets and out of them, where they are computed with: in learners and engines."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import ray
import torch
from ray.exceptions import RayError

from actors.weight_buckets import WeightBucket, WeightsLostError
from rl.weight_transfer.checksum import Sums, checksum, in_words
from rl.weight_transfer.description import WeightTensor, dtype_name, filled

FETCH_S = 120.0  # to get one bucket out of the object store, possibly from another node

warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # weights are read where they lie


def pack(named: Iterable[tuple[str, torch.Tensor]], bucket_bytes: int) -> list[WeightBucket]:
    """Put parameters into buckets of about `bucket_bytes`; a parameter is never split.

    Checksums are computed where the parameters lie, beside the copying.
    """
    with ThreadPoolExecutor(1, "checksums") as summing:
        summed = ((name, tensor, summing.submit(checksum, tensor)) for name, tensor in named)
        sealed = []
        for pending in filled(summed, bucket_bytes, lambda one: one[1].nbytes):
            sealed.append(_seal(pending))
            pending.clear()  # before the next ones are gathered
        return sealed


def unpack(buckets: Sequence[WeightBucket]) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters of all buckets, read-only where they lie in the object store's memory; one bucket held at a time.

    Raises:
        WeightsLostError: a bucket is no longer in the object store.
    """
    for bucket in buckets:
        try:
            arrays = ray.get(bucket.data, timeout=FETCH_S)
        except RayError as error:
            raise WeightsLostError(f"a bucket of weights could not be fetched: {type(error).__name__}") from error
        for tensor, array in zip(bucket.tensors, arrays, strict=True):
            yield tensor.name, torch.from_numpy(array).view(tensor.torch_dtype).view(tensor.shape)


def _seal(pending: Sequence[tuple[str, torch.Tensor, Future[Sums]]]) -> WeightBucket:
    """One put per bucket: NumPy arrays are copied into the object store as they lie, torch tensors are pickled."""
    tensors = tuple(WeightTensor(name, dtype_name(tensor.dtype), tuple(tensor.shape)) for name, tensor, _ in pending)
    data = ray.put(_on_host([tensor for _, tensor, _ in pending]))
    sums = torch.stack([summed.result() for *_, summed in pending]).tolist()
    return WeightBucket(tensors, tuple(map(in_words, sums)), data)


def _on_host(tensors: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """The bytes of tensors: where they lie, or copied from a GPU through pinned memory."""
    flat = [tensor.detach().contiguous().view(-1).view(torch.uint8) for tensor in tensors]
    if flat[0].is_cuda:
        pinned = [torch.empty_like(one, device="cpu", pin_memory=True) for one in flat]
        for target, source in zip(pinned, flat, strict=True):
            target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()
        flat = pinned
    return [one.numpy() for one in flat]
