"""A worker's private memory, and whether it keeps growing."""

from __future__ import annotations

import psutil

WARM_UP = 5  # measurements before growth is counted: caches fill


def own_memory_mib(*, with_children: bool = False) -> float:
    """Private resident memory of this process, in MiB: the resident set less mapped files and shared pages.

    Shared pages (300 MiB of libraries; pixels and weights in Ray's object store) exist once for all processes and
    change with what other processes do.

    Args:
        with_children: processes started by this one count as well (decoders, engine processes).
    """
    own = psutil.Process()
    counted = [own, *own.children(recursive=True)] if with_children else [own]
    return sum(_held_bytes(process) for process in counted) / 2**20


class GrowthGuard:
    """Detects memory leaks: growth beyond a limit, and growth per step.

    Engines leak slowly, over thousands of requests: replacing a worker between two steps is cheaper than losing it to
    the kernel's OOM killer within one.
    """

    def __init__(self, allowed_mib: float) -> None:
        """
        Args:
            allowed_mib: growth beyond the least held after warm-up; 0: no limit.
        """
        self._allowed_mib = allowed_mib
        self._held_mib: list[float] = []

    def update(self, held_mib: float) -> None:
        """Record what the process holds now; once per step."""
        self._held_mib.append(held_mib)

    @property
    def growth_mib(self) -> float:
        """MiB since warm-up; 0 before it."""
        if len(self._held_mib) <= WARM_UP:
            return 0.0
        return self._held_mib[-1] - min(self._held_mib[WARM_UP - 1 :])

    @property
    def slope_mib(self) -> float:
        """MiB per step since warm-up, by least squares; 0 before there are two measurements."""
        held = self._held_mib[WARM_UP - 1 :]
        if len(held) < 2:
            return 0.0
        middle, mean = (len(held) - 1) / 2, sum(held) / len(held)
        spread = sum((step - middle) ** 2 for step in range(len(held)))
        return sum((step - middle) * (mib - mean) for step, mib in enumerate(held)) / spread

    @property
    def is_exceeded(self) -> bool:
        """Growth is beyond the limit and goes on."""
        return 0 < self._allowed_mib < self.growth_mib and self.slope_mib > 0


def _held_bytes(process: psutil.Process) -> int:
    try:
        held = process.memory_info()
    except psutil.NoSuchProcess:
        return 0
    return held.rss - held.shared
