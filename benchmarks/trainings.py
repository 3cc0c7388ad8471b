"""Trainings that a benchmark needs: `dynframe train` and its like in a process of their own, output on stderr."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def train(arguments: Sequence[str], checkout: Path = ROOT, *, command: str = "train") -> None:
    """Run `dynframe train`, or another command, with these YAML files and KEY=VALUE overrides.

    Args:
        checkout: whose code runs, with the packages of this environment.
    Raises:
        subprocess.CalledProcessError: the run failed, and said why.
    """
    _run(command, arguments, checkout, stdout=sys.stderr)


def cold_started(arguments: Sequence[str]) -> str:
    """The folder of the policy that `dynframe cold-start` makes with these arguments, or finds.

    Raises:
        subprocess.CalledProcessError: it could not be made, and said why.
    """
    ended = _run("cold-start", arguments, ROOT, stdout=subprocess.PIPE, text=True)
    sys.stderr.write(ended.stdout)
    return ended.stdout.split()[-1]


def _run(command: str, arguments: Sequence[str], checkout: Path, **options: Any) -> subprocess.CompletedProcess:
    paths = [str(checkout), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return subprocess.run(
        [sys.executable, "-m", "rl", command, *arguments],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        check=True,
        **options,
    )


def is_finished(run_dir: Path) -> bool:
    """Whether a run came to its end."""
    return (run_dir / "summary.json").is_file()


def seeded(seed: int) -> list[str]:
    """Overrides that give a run a world, traces, a cold start and sampling of its own."""
    return [f"{key}={seed}" for key in ("seed", "cold_start.seed", "data.quickstart.seed")]


def training_steps(run_dir: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl that are of training steps, in order."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in map(json.loads, lines) if "seconds/step" in line]
