"""The runs of the learning proof: every variant of the algorithm from the same cold start, over seeds.

A seed has a world, traces and a cold start of its own; its variants share them (the cache finds a cold start by all it
depends on) and get the same number of rollouts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.trainings import seeded, train
from envs.synthetic.world import QUESTIONS
from rl.tracking.metrics import current_names

CONFIGS = ("configs/quickstart.yaml", "benchmarks/learning/conflict.yaml")
VARIANTS: Mapping[str, Sequence[str]] = {  # name of a run -> what it changes
    "grpo": ("algorithm.advantage.method=grpo",),
    "gdpo": ("algorithm.advantage.method=gdpo",),
    "sd_grpo": (),
    "sd_grpo-cross": ("algorithm.advantage.cross_credit=0.25",),
    "sd_grpo-scale-none": ("algorithm.advantage.scale=none",),
    "sd_grpo-segment": ("algorithm.loss.normaliser=segment",),
    "sd_grpo-token": ("algorithm.loss.normaliser=token",),
}
METHODS = ("grpo", "gdpo", "sd_grpo")


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """One training that came to its end."""

    variant: str
    seed: int
    folder: Path
    held_out: tuple[dict[str, float], ...]  # an evaluation each, in order of steps; the first is before training
    steps: tuple[dict[str, float], ...]

    def held_out_records(self, step: int) -> Iterator[dict[str, Any]]:
        """Greedy trajectories of the evaluation after `step` steps."""
        return _lines(self.folder / "held_out" / f"step_{step:06d}.jsonl")

    def training_records(self) -> Iterator[list[dict[str, Any]]]:
        """Sampled groups of siblings, step by step."""
        for path in sorted((self.folder / "trajectories").glob("step_*.jsonl")):
            siblings: list[dict[str, Any]] = []
            for record in _lines(path):
                if record["sibling"] == 0 and siblings:
                    yield siblings
                    siblings = []
                siblings.append(record)
            if siblings:
                yield siblings


def train_variant(variant: str, seed: int, home: Path, overrides: Sequence[str]) -> None:
    """Train one variant with one seed, or go on where it was interrupted; a finished run is left as it is.

    Raises:
        subprocess.CalledProcessError: the run failed, and said why.
    """
    folder = home / run_name(variant, seed)
    if (folder / "summary.json").is_file():
        return
    own = [f"name={folder.name}", f"output_dir={home}", f"cache_dir={home / 'cache'}"]
    train([*CONFIGS, *own, *seeded(seed), *VARIANTS[variant], *overrides])


def read(home: Path, variants: Sequence[str], seeds: Sequence[int]) -> list[FinishedRun]:
    """The runs that are finished, of those asked for."""
    found = []
    for variant in variants:
        for seed in seeds:
            folder = home / run_name(variant, seed)
            if (folder / "summary.json").is_file():
                lines = list(_lines(folder / "metrics.jsonl"))
                evaluations = tuple(line for line in lines if "held_out/tasks" in line)
                steps = tuple(line for line in lines if "seconds/step" in line)
                found.append(FinishedRun(variant, seed, folder, evaluations, steps))
    return found


def run_name(variant: str, seed: int) -> str:
    """The folder of a run."""
    return f"{variant}-{seed}"


def kind_of(record: Mapping[str, Any], kinds: Sequence[str]) -> str:
    """Which kind of question a trajectory answered."""
    return next(kind for kind in kinds if QUESTIONS[kind] in record["task"]["question"])


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from (current_names(json.loads(line)) for line in file)
