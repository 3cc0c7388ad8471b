"""Weights over a link, in buckets: packed where they lie, loaded where they arrive, their checksums behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from rl.weight_transfer.checksum import Sums, checksum, in_words
from rl.weight_transfer.description import WeightTensor
from rl.weight_transfer.link import Link

ALIGNED = 16  # bytes: where a tensor begins in a buffer

Bucket = Sequence[WeightTensor]


def send_weights(link: Link, buckets: Sequence[Bucket], named: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """Send parameters; returns their checksums, computed where they lie.

    Args:
        named: the parameters of all buckets, in order.
    Raises:
        LinkError: a receiver is gone or did not keep up.
    """
    coming, sums = iter(named), list[Sums]()
    buffers = link.sending(_sizes(buckets))
    for bucket in buckets:
        buffer = next(buffers)
        for _, place in _places(bucket):
            _, tensor = next(coming)
            buffer[place].copy_(tensor.detach().contiguous().view(-1).view(torch.uint8))
            sums.append(checksum(tensor))
    values = torch.stack(sums) if sums else torch.zeros(0, 2, dtype=torch.long)
    for buffer in buffers:  # the last
        buffer.copy_(values.view(-1).view(torch.uint8))
    names = [tensor.name for bucket in buckets for tensor in bucket]
    return dict(zip(names, map(in_words, values.tolist()), strict=True))


def receive_weights(
    link: Link, buckets: Sequence[Bucket], load: Callable[[Iterator[tuple[str, Tensor]]], None]
) -> dict[str, str]:
    """Receive parameters; returns the checksums of what was sent.

    Args:
        load: is given the named parameters of a bucket, which it may read until it returns.
    Raises:
        LinkError: the sender or another receiver is gone.
    """
    buffers = link.receiving(_sizes(buckets))
    for bucket in buckets:
        buffer = next(buffers)
        load((tensor.name, _shaped(buffer[place], tensor)) for tensor, place in _places(bucket))
    values = next(buffers).clone().view(torch.int64).view(-1, 2).tolist()
    for _ in buffers:  # to its end: the last has been read
        pass
    names = [tensor.name for bucket in buckets for tensor in bucket]
    return dict(zip(names, map(in_words, values), strict=True))


def _sizes(buckets: Sequence[Bucket]) -> list[int]:
    """Bytes of each buffer: one per bucket, and one for the checksums."""
    ends = [_places(bucket)[-1][1].stop for bucket in buckets]
    return [*ends, 2 * 8 * sum(map(len, buckets))]


def _places(bucket: Bucket) -> list[tuple[WeightTensor, slice]]:
    """Where each tensor of a bucket lies in its buffer."""
    places, start = [], 0
    for tensor in bucket:
        places.append((tensor, slice(start, start + tensor.nbytes)))
        start += -(-tensor.nbytes // ALIGNED) * ALIGNED
    return places


def _shaped(data: Tensor, tensor: WeightTensor) -> Tensor:
    return data.view(tensor.torch_dtype).view(tensor.shape)
