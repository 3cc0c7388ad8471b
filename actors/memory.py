"""How much memory a worker holds by itself, and whether that keeps growing."""

from __future__ import annotations

import psutil

WARM_UP = 5  # measurements before growth is counted: caches fill


def own_memory_mib(*, with_children: bool = False) -> float:
    """Resident memory of this process without mapped files and shared pages.

    The rest of the resident set (300 MiB of libraries, pixels and weights in Ray's object store) is there once for all
    processes, and comes and goes with what the neighbours do.

    Args:
        with_children: processes started by this one count as well (decoders, engine processes).
    """
    own = psutil.Process()
    counted = [own, *own.children(recursive=True)] if with_children else [own]
    return sum(_held_bytes(process) for process in counted) / 2**20


class GrowthGuard:
    """Tells when a process has grown beyond what is normal, and how fast it grows.

    Engines leak slowly, over thousands of requests: a worker is better replaced between two steps than lost to the
    kernel in the middle of one.
    """

    def __init__(self, allowed_mib: float) -> None:
        """
        Args:
            allowed_mib: beyond the least that was held while warm; 0 switches the guard off.
        """
        self._allowed_mib = allowed_mib
        self._held_mib: list[float] = []

    def saw(self, held_mib: float) -> None:
        """What the process holds now; once per step."""
        self._held_mib.append(held_mib)

    @property
    def growth_mib(self) -> float:
        """Since it was warm; 0 before that."""
        if len(self._held_mib) <= WARM_UP:
            return 0.0
        return self._held_mib[-1] - min(self._held_mib[WARM_UP - 1 :])

    @property
    def slope_mib(self) -> float:
        """Growth per step, from the measurements since it was warm (least squares); 0 before there are two."""
        held = self._held_mib[WARM_UP - 1 :]
        if len(held) < 2:
            return 0.0
        middle, mean = (len(held) - 1) / 2, sum(held) / len(held)
        spread = sum((place - middle) ** 2 for place in range(len(held)))
        return sum((place - middle) * (mib - mean) for place, mib in enumerate(held)) / spread

    @property
    def is_exceeded(self) -> bool:
        """It has grown by more than is allowed, and is still growing."""
        return 0 < self._allowed_mib < self.growth_mib and self.slope_mib > 0


def _held_bytes(process: psutil.Process) -> int:
    try:
        held = process.memory_info()
    except psutil.NoSuchProcess:
        return 0
    return held.rss - held.shared
