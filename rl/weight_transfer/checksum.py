"""Checksums of tensors: exact integer sums computed where the tensors lie, so that only sums travel.

A tensor is read as its bytes, row-major, in words of 8 (the last one filled up with zeros). Its checksum is two
integers modulo 2^64: the sum of its words, and the sum of each word times its place from 1. Both are linear: what the
shards of a tensor hold, each with zeros where the others stand, adds up to the checksum of the whole. They detect
tensors that are missing, old, of another shard or in another order, and bits that differ; not an adversary's forgery,
nor the one pair of flips that no sum modulo 2^64 can see: the highest bits of two words an even number of places apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

WORD = 8  # bytes
ROW_WORDS, BLOCK_ROWS = 512, 256  # of a CPU tensor, summed at a time: 1 MiB stays in a core's cache
PLACES = np.arange(1, ROW_WORDS + 1)  # within a row
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
    sums = _sums_of_words_on_cpu if data.device.type == "cpu" else _sums_of_words
    whole = data.numel() // WORD * WORD
    total = sums(data[:whole], offset // WORD)
    if whole < data.numel():
        rest = torch.cat([data[whole:], data.new_zeros(whole + WORD - data.numel())])
        total = total + sums(rest, (offset + whole) // WORD)
    return total


def _sums_of_words(data: Tensor, before: int) -> Sums:
    """Of whole words, with so many words before them."""
    words = (data.clone() if data.data_ptr() % WORD or data.storage_offset() % WORD else data).view(torch.int64)
    in_rows = len(words) // ROW_WORDS * ROW_WORDS
    table, rest = words[:in_rows].view(-1, ROW_WORDS), words[in_rows:]
    rows, columns = table.sum(1), table.sum(0)
    places = torch.arange(1, max(len(rows), ROW_WORDS) + 1, device=data.device)
    plain = columns.sum() + rest.sum()
    placed = (columns * places[:ROW_WORDS]).sum() + (rows * (places[: len(rows)] - 1)).sum() * ROW_WORDS
    placed = placed + (rest * places[: len(rest)]).sum() + rest.sum() * in_rows + plain * before
    return torch.stack([plain, placed])


def _sums_of_words_on_cpu(data: Tensor, before: int) -> Sums:
    """The same; NumPy adds integers four times as fast as torch."""
    words = data.numpy().view(np.int64)
    in_rows = len(words) // ROW_WORDS * ROW_WORDS
    table, rest = words[:in_rows].reshape(-1, ROW_WORDS), words[in_rows:]
    rows, columns = np.empty(len(table), np.int64), np.zeros(ROW_WORDS, np.int64)
    for start in range(0, len(table), BLOCK_ROWS):
        block = table[start : start + BLOCK_ROWS]
        np.add.reduce(block, axis=1, out=rows[start : start + BLOCK_ROWS])
        columns += np.add.reduce(block, axis=0)
    plain = int(columns.sum()) + (of_rest := int(rest.sum()))
    placed = int(columns @ PLACES) + ROW_WORDS * int(rows @ np.arange(len(rows))) + int(rest @ PLACES[: len(rest)])
    placed += in_rows * of_rest + before * plain
    return torch.tensor([(value + 2**63) % 2**64 - 2**63 for value in (plain, placed)])


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)
