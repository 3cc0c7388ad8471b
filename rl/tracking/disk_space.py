"""How much room there is where a run writes."""

from __future__ import annotations

import os
from pathlib import Path


def disk_metrics(run_dir: Path) -> dict[str, float]:
    """What is free on the disk of a run's folder, for whoever is not root; nothing where the disk does not say."""
    try:
        disk = os.statvfs(run_dir)
    except OSError:
        return {}
    if not disk.f_blocks:  # as some network disks
        return {}
    return {"disk/free": float(disk.f_bavail * disk.f_frsize), "disk/free_share": disk.f_bavail / disk.f_blocks}
