"""What broke and was mended: faults.jsonl, and counters per step.

    {"step": 12, "kind": "worker_died", "worker": "rollout/0", "cause": "…", "action": "…", "detected_s": 1.76e9, "recovery_s": 21.4}

The step is the one under way, counted as in metrics.jsonl. The file is only ever appended to: steps repeated from a
checkpoint are rewritten in metrics.jsonl, but what happened, happened.
"""  # noqa: E501 - a line of the file

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rl.trajectory import Fault

FAULTS = "faults.jsonl"  # in a run's folder


def write_faults(run_dir: Path, step: int, faults: Sequence[Fault]) -> None:
    """Append faults, one line each."""
    if not faults:
        return
    with (run_dir / FAULTS).open("a", encoding="utf-8") as file:
        file.writelines(json.dumps({"step": step, **asdict(fault)}) + "\n" for fault in faults)


def fault_metrics(faults: Iterable[Fault]) -> dict[str, float]:
    """How many of each kind."""
    return {f"faults/{kind}": float(count) for kind, count in sorted(Counter(f.kind for f in faults).items())}


def read_faults(run_dir: Path) -> list[dict[str, Any]]:
    """Every fault of a run, oldest first; a torn last line is left out."""
    path, found = run_dir / FAULTS, []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found
