"""A LoRA adapter as peft stores it, added to a policy's weights before anything else is done with them. No peft."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from rl.policy.adapter_files import WEIGHTS, Adapter, read_adapter
from rl.policy.convert import DTYPES, raw_bytes
from rl.policy.lora import with_update
from rl.policy.weight_files import TensorEntry, read_rows, read_weights, require_disk_space, write_tensors


def add_adapter(folder: Path, base: Path, target: Path) -> None:
    """Write into `target`, which is there and empty, the policy of `base` with an adapter's updates added.

    Raises:
        PolicyFilesError: as `read_adapter`, or the disk is full.
    """
    files = read_weights(base)
    adapter = read_adapter(folder, {name: entry for entries in files.values() for name, entry in entries.items()}, base)
    nbytes = sum(entry.nbytes for entries in files.values() for entry in entries.values())
    require_disk_space(target, nbytes, f"{base} with the updates of {folder} (cache_dir)")
    shutil.copytree(base, target, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    with safe_open(folder / WEIGHTS, framework="pt") as trained:
        for file, entries in files.items():
            pieces = (
                piece
                for name, entry in entries.items()
                for piece in _pieces(base / file, name, entry, adapter, trained)
            )
            write_tensors(target / file, entries, pieces)


def _pieces(
    path: Path, name: str, entry: TensorEntry, adapter: Adapter, trained: Any
) -> Iterator[bytearray | memoryview]:
    """The bytes of a weight as they will be, in portions."""
    if name in adapter.replaced:
        yield raw_bytes(trained.get_tensor(adapter.replaced[name]).to(DTYPES[entry.dtype]))
        return
    rows = read_rows(path, entry)
    if name not in adapter.updated:
        yield from rows
        return
    a, b = (trained.get_tensor(part) for part in adapter.updated[name])
    first = 0
    for portion in rows:
        weight = torch.frombuffer(portion, dtype=DTYPES[entry.dtype]).view(-1, entry.shape[1])
        yield raw_bytes(with_update(weight, a, b[first : first + len(weight)], adapter.scale))
        first += len(weight)
