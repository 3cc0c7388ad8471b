"""Checksums of tensors: exact integer sums computed where the tensors lie, so that only sums travel.

A tensor is read as its bytes, row-major, in words of 8 (the last one filled up with zeros). Its checksum is two
integers modulo 2^64: the sum of its words, and the sum of each word times its place from 1. Both are linear: what the
shards of a tensor hold, each with zeros where the others stand, adds up to the checksum of the whole. They detect bits
that differ or have changed places, not an adversary's forgery.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

WORD = 8  # bytes
ROW_WORDS, BLOCK_ROWS = 512, 256  # of a CPU tensor, summed at a time: 1 MiB stays in a core's cache
PIECE_BYTES = 2**25  # of a tensor cut along its second dimension, put in its place at a time

Sums = Tensor  # two int64 on the tensor's device: of the words, and of the words times their places


@torch.no_grad()
def checksum(tensor: Tensor) -> Sums:
    """Of a whole tensor."""
    return _sums(_bytes_of(tensor), offset=0)


@torch.no_grad()
def shard_checksum(shard: Tensor, shape: Sequence[int], dim: int, start: int) -> Sums:
    """What a shard adds to the checksum of the tensor it was cut from.

    Args:
        shape: of the whole tensor; what of the shard lies beyond it is padding and does not count.
        dim: 0 or 1, along which the tensor was cut.
        start: index along `dim` of the shard's first slice.
    """
    shard = shard.detach().narrow(dim, 0, min(shard.shape[dim], max(shape[dim] - start, 0)))
    row_bytes = shard.element_size() * int(np.prod(shape[1:], dtype=np.int64))
    if dim == 0:
        return _sums(_bytes_of(shard), offset=start * row_bytes)
    total = torch.zeros(2, dtype=torch.long, device=shard.device)
    rows = max(1, PIECE_BYTES // row_bytes)
    for first, piece in zip(range(0, len(shard), rows), shard.split(rows), strict=True):
        whole = shard.new_zeros(len(piece), *shape[1:])
        whole.narrow(dim, start, piece.shape[dim]).copy_(piece)
        total += _sums(_bytes_of(whole), offset=first * row_bytes)
    return total


def in_words(sums: Sequence[int]) -> str:
    """A checksum as 32 hexadecimal digits."""
    return "".join(f"{value % 2**64:016x}" for value in sums)


def _sums(data: Tensor, offset: int) -> Sums:
    """Of bytes that begin at `offset` of a tensor's."""
    if offset % WORD:
        data = torch.cat([data.new_zeros(offset % WORD), data])
    total = torch.zeros(2, dtype=torch.long, device=data.device)
    for table, first in _tables(data):
        rows, columns = _row_and_column_sums(table)
        within = columns * torch.arange(1, len(columns) + 1, device=data.device)
        before = rows * torch.arange(first, first + rows.numel() * table.shape[1], table.shape[1], device=data.device)
        total += torch.stack([rows.sum(), within.sum() + before.sum()])
    total[1] += total[0] * (offset // WORD)
    return total


def _tables(data: Tensor) -> Iterator[tuple[Tensor, int]]:
    """The words of some bytes: those that fill rows, the others, the incomplete one; each with the place before it."""
    count = data.numel() // WORD
    whole, rest = data[: count * WORD], data[count * WORD :]
    if whole.data_ptr() % WORD or whole.storage_offset() % WORD:
        whole = whole.clone()
    words, in_rows = whole.view(torch.int64), count // ROW_WORDS * ROW_WORDS
    if in_rows:
        yield words[:in_rows].view(-1, ROW_WORDS), 0
    if count > in_rows:
        yield words[in_rows:].view(1, -1), in_rows
    if rest.numel():
        yield torch.cat([rest, rest.new_zeros(WORD - rest.numel())]).view(torch.int64).view(1, 1), count


def _row_and_column_sums(table: Tensor) -> tuple[Tensor, Tensor]:
    if table.device.type != "cpu":
        return table.sum(1), table.sum(0)
    words = table.numpy()  # NumPy adds integers four times as fast as torch
    rows, columns = np.empty(len(words), np.int64), np.zeros(words.shape[1], np.int64)
    for start in range(0, len(words), BLOCK_ROWS):
        block = words[start : start + BLOCK_ROWS]
        np.add.reduce(block, axis=1, out=rows[start : start + BLOCK_ROWS])
        columns += np.add.reduce(block, axis=0)
    return torch.from_numpy(rows), torch.from_numpy(columns)


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)
