"""Checksums of tensors, computed where they lie: what the optimizer holds after a step, in one short string."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from rl.weight_transfer.checksum import checksum

Part = bytes | str


@torch.no_grad()
def tensors_digest(named: Mapping[str, Tensor]) -> str:
    """sha256 over the names, types, shapes and checksums of tensors, wherever they lie.

    The checksums are exact integer sums, computed where the tensors are; only the sums travel, at once from each
    device. Equal tensors have equal ones (rl.weight_transfer.checksum).
    """
    names = sorted(named)
    described = [f"{name} {named[name].dtype} {tuple(named[name].shape)}" for name in names]
    sums = _on_host({name: checksum(named[name]) for name in names})
    return sha256_of([*described, *(id_bytes(sums[name]) for name in names)])


def weights_digest(named: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 over names, types, shapes and bytes of tensors, in the order given; each is copied to the CPU in turn."""
    digest = hashlib.sha256()
    for name, tensor in named:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def id_bytes(values: Sequence[int]) -> bytes:
    """Integers as little-endian 8-byte words."""
    return np.asarray(values, dtype="<i8").tobytes()


def sha256_of(parts: Iterable[Part]) -> str:
    """sha256, in hexadecimal, over a sequence of parts; where one part ends and the next begins counts."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def _on_host(sums: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Small tensors of one shape as lists, fetched from each device in one transfer."""
    devices: dict[torch.device, list[str]] = {}
    for name, pair in sums.items():
        devices.setdefault(pair.device, []).append(name)
    fetched = {}
    for names in devices.values():
        fetched |= dict(zip(names, torch.stack([sums[name] for name in names]).tolist(), strict=True))
    return fetched
