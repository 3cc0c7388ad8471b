"""Trainings that a benchmark needs: `dynframe train` in a process of its own, its output on stderr."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def train(arguments: Sequence[str], checkout: Path = ROOT) -> None:
    """Run `dynframe train` with these YAML files and KEY=VALUE overrides.

    Args:
        checkout: whose code runs, with the packages of this environment.
    Raises:
        subprocess.CalledProcessError: the run failed, and said why.
    """
    paths = [str(checkout), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    subprocess.run(
        [sys.executable, "-m", "rl", "train", *arguments],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        check=True,
        stdout=sys.stderr,
    )


def seeded(seed: int) -> list[str]:
    """Overrides that give a run a world, traces, a cold start and sampling of its own."""
    return [f"{key}={seed}" for key in ("seed", "cold_start.seed", "data.quickstart.seed")]


def training_steps(run_dir: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl that are of training steps, in order."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in map(json.loads, lines) if "seconds/step" in line]
