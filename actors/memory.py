"""How much memory a worker holds by itself."""

from __future__ import annotations

import psutil


def own_memory_mib() -> float:
    """Resident memory of this process without mapped files and shared pages.

    The rest of the resident set (300 MiB of libraries, pixels and weights in Ray's object store) is there once for all
    processes, and comes and goes with what the neighbours do.
    """
    held = psutil.Process().memory_info()
    return (held.rss - held.shared) / 2**20
