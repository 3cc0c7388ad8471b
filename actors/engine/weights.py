"""Weights into a vLLM engine: in buckets, under a version that says so while only a part of them is there."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from actors.engine.driver import Driver

BUCKET_BYTES = 64 * 2**20  # of weights handed over at a time
PARTIAL = "part"  # the version of an engine's weights begins with it while they are incomplete


def replace_weights(driver: Driver, *, named: Iterable[tuple[str, torch.Tensor | np.ndarray]], version: int) -> None:
    """Hand over parameters, then drop every cache. Only inside `Driver.exclusively`."""
    driver.set_weight_version(f"{PARTIAL} of version {version}")  # until all are there
    bucket, size = [], 0
    for name, value in named:
        bucket.append(_flat(name, value))
        size += bucket[-1][-1].nbytes
        if size >= BUCKET_BYTES:
            driver.call("put_weights", bucket)
            bucket, size = [], 0
    driver.call("put_weights", bucket)
    driver.reset_caches()
    driver.set_weight_version(str(version))


def _flat(name: str, value: torch.Tensor | np.ndarray) -> tuple[str, str, list[int], memoryview]:
    """Name, dtype, shape and bytes: they reach a worker in this process and in another one alike."""
    tensor = (
        value.detach() if isinstance(value, torch.Tensor) else torch.from_numpy(np.require(value, requirements="W"))
    )
    dtype = "bfloat16" if tensor.dtype == torch.uint16 else str(tensor.dtype).removeprefix("torch.")
    data = tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data
    return name, dtype, list(tensor.shape), data
