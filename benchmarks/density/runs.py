"""The runs of the density benchmark: what teaches the rate of a look, from the same cold start, over seeds.

A seed has a world, traces and a cold start of its own, whose rates follow the detail's loosely; its arms share them,
but for those that may look several times: their cold start has traces that look again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.trainings import cold_started, is_finished, seeded, train
from envs.synthetic.world import QuickstartWorld
from rl.config.file import load_config
from rl.config.run import RunConfig

CONFIGS = ("configs/quickstart.yaml", "benchmarks/density/brevities.yaml")
BUDGET = 48  # frames that cost `price`; retrieval.max_frames of the overlay
LOW, HIGH = 2.0, 12.0  # frames per second, where the rate is fixed: the second lowest need, and the highest
CHEAP, DEAR = 0.5, 2.0  # of BUDGET frames

TOGETHER = ("algorithm.advantage.method=grpo",)  # R_samp and R_reason are added: the look is paid for the answer
UNLABELLED = ("rewards.frame_rate.weight=0",)  # the match with the annotated rate is measured, not counted
BY_ANSWER = (*TOGETHER, *UNLABELLED)
SEVERAL = ("retrieval.max_calls=3", "cold_start.looks=3", "rollout.max_new_tokens=128")


def priced(price: float) -> tuple[str, ...]:
    """The answer's reward less a price per frame. Window and price share R_samp, which therefore counts twice: what a
    window earns stays what it is without a price."""
    term = {"fn": "frame_cost", "segment": "sampling", "weight": 0.5}
    settings = [f"rewards.cost.{key}={value}" for key, value in term.items()]
    args = [f"rewards.cost.args.price={price:g}", f"rewards.cost.args.budget_frames={BUDGET}"]
    return (*BY_ANSWER, *settings, *args, "algorithm.advantage.sampling_weight=1.0")


def fixed(fps: float) -> tuple[str, ...]:
    """Every look has this rate, whatever it asks for."""
    return (*BY_ANSWER, f"retrieval.min_fps={fps:g}", f"retrieval.max_fps={fps:g}")


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of learning how densely to look."""

    title: str
    overrides: tuple[str, ...]

    @property
    def looks_severally(self) -> bool:
        """It has a cold start of its own, whose traces look again."""
        return set(SEVERAL) <= set(self.overrides)


ARMS: Mapping[str, Arm] = {  # name of a run -> what it changes
    "labelled": Arm("labelled rates", ()),
    "labelled_grpo": Arm("labelled rates, GRPO", TOGETHER),
    "uncredited": Arm("no label, SD-GRPO", UNLABELLED),
    "answer": Arm("answer alone", BY_ANSWER),
    "cheap": Arm("answer, low price", priced(CHEAP)),
    "dear": Arm("answer, high price", priced(DEAR)),
    "fixed_low": Arm(f"fixed {LOW:g} fps", fixed(LOW)),
    "fixed_high": Arm(f"fixed {HIGH:g} fps", fixed(HIGH)),
    "calls": Arm("up to three calls", (*BY_ANSWER, *SEVERAL)),
}


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """One training that came to its end."""

    arm: str
    seed: int
    folder: Path

    @property
    def config(self) -> RunConfig:
        """What it was started with."""
        return load_config([self.folder / "config.yaml"])

    @property
    def evaluations(self) -> list[Path]:
        """Greedy trajectories of held-out tasks, in order of steps; the first are from before training."""
        return sorted((self.folder / "held_out").glob("step_*.jsonl"))


def world_of(config: RunConfig) -> QuickstartWorld:
    """The world that a configuration declares."""
    declared = config.data.quickstart
    settings = {name: getattr(declared, name) for name in declared.__dataclass_fields__}
    return QuickstartWorld(**settings, coarse_fps=config.video.coarse.fps)


def cold_start(severally: bool, seed: int, home: Path, overrides: Sequence[str]) -> str:
    """The folder of the policy that a seed's arms begin with; made once, then found.

    Raises:
        subprocess.CalledProcessError: it could not be made, and said why.
    """
    looks = SEVERAL if severally else ()
    return cold_started([*CONFIGS, f"cache_dir={home / 'cache'}", *seeded(seed), *looks, *overrides])


def train_arm(arm: str, seed: int, policy: str, home: Path, overrides: Sequence[str]) -> None:
    """Train one arm from its cold start.

    Raises:
        subprocess.CalledProcessError: the run failed, and said why.
    """
    own = [f"name={folder(home, arm, seed).name}", f"output_dir={home}", f"cache_dir={home / 'cache'}"]
    start = [f"policy.path={policy}", "cold_start.enabled=false"]
    train([*CONFIGS, *own, *seeded(seed), *ARMS[arm].overrides, *start, *overrides])


def read(home: Path, arms: Sequence[str], seeds: Sequence[int]) -> list[FinishedRun]:
    """The runs that are finished, of those asked for."""
    found = [FinishedRun(arm, seed, folder(home, arm, seed)) for arm in arms for seed in seeds]
    return [run for run in found if is_finished(run.folder)]


def records(path: Path) -> Iterator[dict[str, Any]]:
    """Trajectories of a file, as the run has written them."""
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def folder(home: Path, arm: str, seed: int) -> Path:
    """Of a run."""
    return home / f"{arm}-{seed}"
