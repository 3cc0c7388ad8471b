"""Memory that an engine's processes read without a copy of their own: a file that is nowhere on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence


class MemoryFile:
    """Memory that other processes of this user read as a file; it is gone with this process, however that ends."""

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("weights")

    @property
    def path(self) -> str:
        """Where another process opens it."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def write(self, parts: Sequence[memoryview]) -> list[tuple[int, int]]:
        """Replace what is in it; returns the range of each part."""
        ranges, start = [], 0
        for part in parts:
            view, written = part.cast("B"), 0
            while written < len(view):
                written += os.pwrite(self._descriptor, view[written:], start + written)
            ranges.append((start, start + len(view)))
            start += -(-len(view) // 8) * 8  # of whole words
        return ranges

    def close(self) -> None:
        """Give the memory back."""
        os.close(self._descriptor)
