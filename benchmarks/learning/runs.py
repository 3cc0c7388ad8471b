"""The runs of the credit benchmark: every method in every regime from the same cold start, over seeds.

A seed has clips, traces and cold starts of its own; its runs share them and get the same number of rollouts. A regime
differs from the base regime in one thing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.trainings import cold_started, is_finished, seeded, train

CONFIGS = ("configs/quickstart.yaml", "benchmarks/learning/conflict.yaml")


@dataclass(frozen=True, slots=True)
class World:
    """What is asked, and how the policy has learned to look: runs in it begin with the same cold start."""

    chance: float  # of a right answer without evidence
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Regime:
    """Where methods are compared."""

    title: str
    world: str = "colour"
    overrides: tuple[str, ...] = ()


WORLDS: Mapping[str, World] = {
    "colour": World(0.25),
    "warmth": World(0.5, ("data.quickstart.question_kinds=[warmth]",)),
    "looks": World(0.25, ("retrieval.max_calls=2", "cold_start.looks=2", "rollout.max_new_tokens=96")),
}
STEPS = 50  # trainer.steps of conflict.yaml
NOISE = "data.quickstart.wrong_labels"
BASE = "noise10"
REGIMES: Mapping[str, Regime] = {  # by the names of their runs' folders
    "noise0": Regime("no wrong labels", overrides=(f"{NOISE}=0.0",)),
    BASE: Regime("10 % wrong labels: the base", overrides=(f"{NOISE}=0.1",)),
    "noise30": Regime("30 % wrong labels", overrides=(f"{NOISE}=0.3",)),
    "lucky": Regime("lucky answers", "warmth", (f"{NOISE}=0.1",)),
    "group4": Regime("4 siblings", overrides=(f"{NOISE}=0.1", "rollout.group_size=4", "rollout.tasks_per_step=8")),
    "group16": Regime("16 siblings", overrides=(f"{NOISE}=0.1", "rollout.group_size=16", "rollout.tasks_per_step=2")),
    "looks2": Regime("two looks", "looks", (f"{NOISE}=0.1",)),
}
METHODS: Mapping[str, tuple[str, ...]] = {
    "grpo": ("algorithm.advantage.method=grpo",),
    "gdpo": ("algorithm.advantage.method=gdpo",),
    "sd_grpo": (),
    "sd_grpo-scheduled": (
        "algorithm.advantage.cross_credit=1.0",
        f"algorithm.advantage.cross_credit_steps={STEPS}",
    ),
    "sd_grpo-each": ("algorithm.advantage.calls=each",),
}
SEVERAL_LOOKS_ONLY = "sd_grpo-each"
PERFECT = tuple(f"cold_start.{key}=0" for key in ("window_jitter_s", "window_shift_s", "fps_jitter", "misread"))


@dataclass(frozen=True, slots=True)
class Run:
    """One training: a method in a regime with a seed."""

    regime: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """Its folder."""
        return f"{self.regime}-{self.method}-{self.seed}"

    @property
    def is_compared(self) -> bool:
        """Whether the method differs from the others in this regime."""
        return self.method != SEVERAL_LOOKS_ONLY or self.regime == "looks2"


def runs_of(seed: int, regimes: Sequence[str], methods: Sequence[str]) -> list[Run]:
    """The runs of a seed, those that begin with the same cold start in a row."""
    asked = [Run(regime, method, seed) for regime in regimes for method in methods]
    return [run for run in asked if run.is_compared]


def cold_start(world: str, seed: int, home: Path, overrides: Sequence[str]) -> str:
    """The folder of the policy that a seed's runs in a world begin with; made once, then found.

    Raises:
        subprocess.CalledProcessError: it could not be made, and said why.
    """
    arguments = [*CONFIGS, f"cache_dir={home / 'cache'}", *seeded(seed), *WORLDS[world].overrides, *overrides]
    return cold_started(arguments)


def train_run(run: Run, policy: str, home: Path, overrides: Sequence[str]) -> None:
    """Train one run from its cold start; a finished one is left as it is.

    Raises:
        subprocess.CalledProcessError: the run failed, and said why.
    """
    regime = REGIMES[run.regime]
    setting = (*WORLDS[regime.world].overrides, *regime.overrides, *METHODS[run.method])
    start = (f"policy.path={policy}", "cold_start.enabled=false")
    _train(run.name, run.seed, home, (*setting, *start, *overrides))


def train_on_perfect_looks(world: str, seed: int, home: Path, overrides: Sequence[str]) -> None:
    """The ceiling of a world: supervised training on looks that are exactly right, evaluated."""
    _train(ceiling_name(world, seed), seed, home, (*WORLDS[world].overrides, *overrides, *PERFECT, "trainer.steps=0"))


def ceiling_name(world: str, seed: int) -> str:
    """The folder of a ceiling."""
    return f"ceiling-{world}-{seed}"


def _train(name: str, seed: int, home: Path, overrides: Sequence[str]) -> None:
    if is_finished(home / name):
        return
    own = [f"name={name}", f"output_dir={home}", f"cache_dir={home / 'cache'}"]
    train([*CONFIGS, *own, *seeded(seed), *overrides])
