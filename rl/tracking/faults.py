"""What broke and was recovered: faults.jsonl, and counters per step.

    {"step": 12, "kind": "worker_died", "worker": "rollout/0", "cause": "…", "action": "…", "detected_s": 1.76e9, "recovery_s": 21.4}

The step is the one under way, counted as in metrics.jsonl. The file is only ever appended to: steps repeated from a
checkpoint are rewritten in metrics.jsonl, but what happened, happened.
"""  # noqa: E501 - a line of the file

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rl.tracking.lines import append
from rl.trajectory import Fault

FAULTS = "faults.jsonl"  # in a run's folder
COUNTED = "faults/"  # of these metrics' names; what follows is the kind


def write_faults(run_dir: Path, step: int, faults: Sequence[Fault]) -> None:
    """Append faults, one line each; a line that a killed run left torn stays a line of its own.

    Raises:
        OSError: none of them could be written.
    """
    if not faults:
        return
    lines = "".join(json.dumps({"step": step, **_known(fault)}) + "\n" for fault in faults)
    path = run_dir / FAULTS
    append(path, lines if _ends_whole(path) else f"\n{lines}")


def fault_metrics(faults: Iterable[Fault]) -> dict[str, float]:
    """How many of each kind."""
    return {f"{COUNTED}{kind}": float(count) for kind, count in sorted(Counter(f.kind for f in faults).items())}


def read_faults(run_dir: Path) -> list[dict[str, Any]]:
    """Every fault of a run, oldest first; a torn line, and one that is no fault (no step or kind in it), is left out.

    Raises:
        OSError: the file is there and cannot be read.
    """
    path, found = run_dir / FAULTS, []
    if not path.exists():
        return found
    with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:  # "\n" only: a cause may hold U+2028
        for line in lines:
            try:
                fault = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(fault, dict) and isinstance(fault.get("kind"), str) and "step" in fault:
                found.append(fault)
    return found


def fault_counts(run_dir: Path) -> dict[str, int]:
    """How many of each kind a whole run had, the most frequent first: steps that were repeated count each time.

    Raises:
        OSError: as read_faults.
    """
    return dict(Counter(fault["kind"] for fault in read_faults(run_dir)).most_common())


def _known(fault: Fault) -> dict[str, Any]:
    return {name: value for name, value in asdict(fault).items() if value is not None}


def _ends_whole(path: Path) -> bool:
    if not path.exists() or not path.stat().st_size:
        return True
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
