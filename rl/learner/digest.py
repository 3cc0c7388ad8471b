"""Checksums of tensors, computed where they lie: what the optimizer holds after a step, in one short string."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from rl.sha256 import id_bytes, sha256_of

# words of 4 bytes and no larger ones: of 8, two flipped signs at places whose sum is even would cancel out
CHUNK_WORDS = 2**16  # of a tensor, summed at a time: on a CPU they stay in a core's cache
# elsewhere a launch costs what a million words do; with these it is lost, and what is made beside them takes 256 MiB
DEVICE_CHUNK_WORDS = 2**24


@torch.no_grad()
def tensors_digest(named: Mapping[str, Tensor]) -> str:
    """sha256 over the names, types, shapes and checksums of tensors, wherever they lie.

    The checksums are exact integer sums, computed where the tensors are; only the sums travel, at once from each
    device. Equal tensors have equal ones. They detect bits that differ or changed places, not an adversary's forgery.
    """
    names = sorted(named)
    described = [f"{name} {named[name].dtype} {tuple(named[name].shape)}" for name in names]
    sums = _on_host({name: value_sums(named[name]) for name in names})
    return sha256_of([*described, *(id_bytes(sums[name]) for name in names)])


def weights_digest(named: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 over names, types, shapes and bytes of tensors, in the order given; each is copied to the CPU in turn."""
    digest = hashlib.sha256()
    for name, tensor in named:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def value_sums(tensor: Tensor, *, chunk_words: int | None = None) -> Tensor:
    """Two integers modulo 2^64, on the tensor's device: the sum of its words, and of each word times its place from 1.

    A word is the bits of one value, read as a signed integer of 1, 2 or 4 bytes (8-byte values give two). Weights on
    their way are summed otherwise, in words of 8 bytes (rl.weight_transfer.checksum): shards of any type add up there.

    Args:
        chunk_words: summed at a time; the sums are the same whatever it is. None: what suits the device.
    """
    size = tensor.element_size()
    words = tensor.detach().contiguous().view(-1).view({1: torch.int8, 2: torch.int16}.get(size, torch.int32))
    if chunk_words is None:
        chunk_words = CHUNK_WORDS if words.device.type == "cpu" else DEVICE_CHUNK_WORDS
    places = torch.arange(1, min(chunk_words, len(words)) + 1, device=words.device)
    total = torch.zeros(2, dtype=torch.long, device=words.device)
    for index, chunk in enumerate(words.split(chunk_words)):
        plain = chunk.sum()  # of integers: in 64 bits
        placed = (chunk * places[: len(chunk)]).sum() + plain * (index * chunk_words)
        total += torch.stack([plain, placed])
    return total


def _on_host(sums: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Small tensors of one shape as lists, fetched from each device in one transfer."""
    devices: dict[torch.device, list[str]] = {}
    for name, pair in sums.items():
        devices.setdefault(pair.device, []).append(name)
    fetched = {}
    for names in devices.values():
        fetched |= dict(zip(names, torch.stack([sums[name] for name in names]).tolist(), strict=True))
    return fetched
