"""Weights into a vLLM engine: in buckets, under a version that says so while only a part of them is there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from actors.engine.driver import Driver, FlatWeight
from rl.policy.vllm.live_weights import add_up
from rl.weight_transfer.checksum import in_words
from rl.weight_transfer.description import WeightTensor, dtype_name, filled

BUCKET_BYTES = 64 * 2**20  # of weights handed over at a time
PARTIAL = "part"  # the version of an engine's weights begins with it while they are incomplete


def replace_weights(
    driver: Driver, *, named: Iterable[tuple[str, torch.Tensor | np.ndarray]], version: int
) -> dict[str, str]:
    """Hand over parameters, then drop every cache. Only inside `Driver.exclusively`.

    Returns:
        Checksums of what the engine's model then holds under their names.
    """
    driver.set_weight_version(f"{PARTIAL} of version {version}")  # until all are there
    with ThreadPoolExecutor(1, "checksums") as summing:
        sums = []
        for bucket in _in_buckets(named):
            driver.put_weights(bucket)
            sums.append(summing.submit(live_checksums, driver, [name for name, *_ in bucket]))  # beside the next bucket
        held = {name: summed for part in sums for name, summed in part.result().items()}
    driver.reset_caches()
    driver.set_weight_version(str(version))
    return held


def receive_weights(driver: Driver, *, buckets: Sequence[Sequence[WeightTensor]], version: int) -> list[str]:
    """Let every worker of the engine overwrite parameters with what comes over its link, then drop every cache.

    Only inside `Driver.exclusively`.

    Returns:
        Names of parameters of which the engine then holds other values than the sender.
    """
    driver.set_weight_version(f"{PARTIAL} of version {version}")
    driver.call("start_weight_update")
    described = [[(tensor.name, tensor.dtype, list(tensor.shape)) for tensor in bucket] for bucket in buckets]
    driver.call("update_weights", {"buckets": described})
    driver.call("finish_weight_update")
    sent = driver.call("sent_checksums")[0]
    held = live_checksums(driver, list(sent))
    driver.reset_caches()
    driver.set_weight_version(str(version))
    return [name for name in sent if held[name] != sent[name]]


def live_checksums(driver: Driver, names: Sequence[str]) -> dict[str, str]:
    """Checksums of live parameters, from all the engine's workers; where they contradict each other, all are given."""
    by_rank = driver.call("sum_weights", list(names))
    return {name: " ".join(map(in_words, add_up([sums[name] for sums in by_rank]))) for name in names}


def _in_buckets(named: Iterable[tuple[str, torch.Tensor | np.ndarray]]) -> Iterator[list[FlatWeight]]:
    return filled((_flat(name, value) for name, value in named), BUCKET_BYTES, lambda flat: flat[-1].nbytes)


def _flat(name: str, value: torch.Tensor | np.ndarray) -> FlatWeight:
    """Name, dtype, shape and bytes, where they lie if that is this process's memory."""
    tensor = value.detach() if isinstance(value, torch.Tensor) else torch.from_numpy(value)
    dtype = "bfloat16" if tensor.dtype == torch.uint16 else dtype_name(tensor.dtype)
    data = tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data
    return name, dtype, list(tensor.shape), data
