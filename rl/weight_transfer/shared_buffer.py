"""A buffer that other processes on the node read where it lies: on a GPU through CUDA IPC, on the CPU as a file."""

from __future__ import annotations

import base64
import json
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

# arguments that rebuild a CUDA tensor, by place: those that every receiver knows by itself, and the device, which it
# counts by itself; the others are numbers and bytes
KNOWN = {0: torch.Tensor, 4: torch.storage.TypedStorage, 5: torch.uint8}
DEVICE_INDEX = 6

Handle = str  # what another process needs to open it: JSON, since whoever can reach the store could have written it


class SharedBuffer:
    """Memory of this process that others may read; on the CPU it is gone with this process, however that ends."""

    def __init__(self, size: int, device: torch.device) -> None:
        """
        Args:
            size: in bytes.
        """
        self._descriptor: int | None = None
        if device.type == "cuda":
            self.bytes = torch.empty(size, dtype=torch.uint8, device=device)
            self.handle: Handle = json.dumps([_place(device), size, cuda_arguments(reduce_tensor(self.bytes)[1])])
            return
        self._descriptor = os.memfd_create("weights")
        os.truncate(self._descriptor, size)
        mapped = mmap.mmap(self._descriptor, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        self.bytes = torch.frombuffer(mapped, dtype=torch.uint8)
        self.handle = json.dumps([_place(device), size, [os.getpid(), self._descriptor]])

    def __len__(self) -> int:
        return len(self.bytes)

    def close(self) -> None:
        """Give the memory back once nobody reads it any more."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def open_shared(handle: Handle, device: torch.device) -> Tensor:
    """The bytes of another process's buffer.

    Raises:
        OSError: it is not on this GPU, or this node.
    """
    place, size, where = json.loads(handle)
    if place != _place(device):
        raise OSError(f"the sender's memory is on another node or GPU ({place}) than this process's ({_place(device)})")
    if device.type == "cuda":
        return rebuild_cuda_tensor(*rebuilding_arguments(where, device))
    process, descriptor = map(int, where)
    with open(f"/proc/{process}/fd/{descriptor}", "r+b") as file:
        mapped = mmap.mmap(file.fileno(), size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    return torch.frombuffer(mapped, dtype=torch.uint8)


def cuda_arguments(arguments: Sequence[Any]) -> list[Any]:
    """What `reduce_tensor` says of a CUDA tensor of bytes, as JSON can say it."""
    plain: list[Any] = [None if place in KNOWN else value for place, value in enumerate(arguments)]
    return [{"base64": base64.b64encode(v).decode()} if isinstance(v, bytes) else v for v in plain]


def rebuilding_arguments(plain: Sequence[Any], device: torch.device) -> list[Any]:
    """The arguments that rebuild it on a receiver's device; nothing in them is code."""
    arguments = [base64.b64decode(v["base64"]) if isinstance(v, dict) else v for v in plain]
    arguments = [tuple(v) if isinstance(v, list) else v for v in arguments]
    for place, known in (*KNOWN.items(), (DEVICE_INDEX, device.index)):
        arguments[place] = known
    return arguments


def _place(device: torch.device) -> str:
    """The GPU, or the node as long as it has been running."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_properties(device).uuid)
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
