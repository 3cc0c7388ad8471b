"""Where the numbers of running Rays are found: their own lists of addresses, of all Rays on this machine in one file.

The dashboard of a Ray writes the list of its nodes anew every few seconds, into its session's folder; the list of one
that has ended stays as it was. /tmp/ray has a link to one of them only, whichever wrote last.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIST = "prom_metrics_service_discovery.json"
FRESH_S = 60.0  # a Ray whose list is older has ended: it is written anew every 5 s


@dataclass(frozen=True, slots=True)
class RaySession:
    """A Ray that runs on this machine."""

    name: str  # of its folder
    addresses: tuple[str, ...]  # host:port of each of its processes that export numbers


def ray_folder() -> Path:
    """Where Rays of this machine keep their sessions, as Ray itself decides it."""
    return Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray"


def running_sessions(folder: Path, now_s: float | None = None) -> list[RaySession]:
    """The Rays that run, by their lists; one that cannot be read is left out until it can."""
    now_s = time.time() if now_s is None else now_s
    found = []
    for path in sorted(folder.glob(f"session_*/{LIST}")):
        if path.parent.is_symlink():  # session_latest
            continue
        try:
            if now_s - path.stat().st_mtime <= FRESH_S:
                found.append(RaySession(path.parent.name, _addresses(json.loads(path.read_text(encoding="utf-8")))))
        except (OSError, ValueError, TypeError, AttributeError):
            continue
    return found


def write_targets(path: Path, sessions: list[RaySession]) -> None:
    """Write what Prometheus reads, in one rename.

    Raises:
        OSError: it could not be written.
    """
    addresses = sorted({address for session in sessions for address in session.addresses})
    draft = path.with_name(f".{path.name}")
    draft.write_text(json.dumps([{"targets": addresses}] if addresses else []) + "\n", encoding="utf-8")
    draft.replace(path)


def _addresses(listed: list[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(str(address) for entry in listed for address in entry.get("targets", ()))
