"""A buffer that other processes on the node read where it lies: on a GPU through CUDA IPC, on the CPU as a file."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

DEVICE_INDEX = 6  # of the arguments that rebuild a CUDA tensor: a receiver counts its devices by itself

Handle = tuple[Any, ...]  # what another process needs to open it


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
            self.handle: Handle = (_place(device), size, reduce_tensor(self.bytes)[1])
            return
        self._descriptor = os.memfd_create("weights")
        os.truncate(self._descriptor, size)
        mapped = mmap.mmap(self._descriptor, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        self.bytes = torch.frombuffer(mapped, dtype=torch.uint8)
        self.handle = (_place(device), size, f"/proc/{os.getpid()}/fd/{self._descriptor}")

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
    place, size, where = handle
    if place != _place(device):
        raise OSError(f"the sender's memory is on another node or GPU ({place}) than this process's ({_place(device)})")
    if device.type == "cuda":
        arguments = list(where)
        arguments[DEVICE_INDEX] = device.index
        return rebuild_cuda_tensor(*arguments)
    with open(where, "r+b") as file:
        mapped = mmap.mmap(file.fileno(), size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    return torch.frombuffer(mapped, dtype=torch.uint8)


def _place(device: torch.device) -> str:
    """The GPU, or the node as long as it has been running."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_properties(device).uuid)
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
