"""The runs of the ablation: every arm fine-tuned on the same footage with as many steps, over seeds, then measured.

A seed has clips, a policy and an order of conversations of its own; its arms share all three. What is held out is the
same for all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.records import RunRecords
from benchmarks.trainings import ROOT, is_finished, train
from envs.synthetic.shot_world import ShotWorld, render_shots
from rl.checkpoint.checkpoint import POLICY_FOLDER
from rl.checkpoint.store import CHECKPOINTS
from rl.config.file import load_config
from rl.config.run import RunConfig
from rl.run.prepare.policy import prepare_policy

CONFIG = "benchmarks/flexivideo/ablation.yaml"
FAMILIES = ("qwen2_5_vl", "qwen3_vl")
FEATURES, TEACHER = "features", "dynamic"  # the arm that compares features takes them from the tower of the other
ARMS: Mapping[str, Mapping[str, object]] = {  # name -> its policy.scenes, but for how times are written
    "pairs": {"mode": "fixed"},
    "sixes": {"mode": "fixed6"},
    "dynamic": {"budget": "none"},
    "budget": {"budget": "pairs", "difference_scale": 4},
    "adaptive": {"budget": "none", "threshold": "adaptive"},
    FEATURES: {"budget": "none", "difference": "features", "tau": 0.2},
}
CLEAN, HALFWAY = "clean", "clean, after half the steps"
FOOTAGE: Mapping[str, tuple[str, float]] = {  # name -> disturbance and strength
    CLEAN: ("", 0.0),  # what is learned from
    "drift 10 %": ("drift", 0.1),
    "drift 30 %": ("drift", 0.3),
    "flicker 5 %": ("flicker", 0.05),
    "flicker 15 %": ("flicker", 0.15),
    "shake 1 px": ("shake", 1),
    "shake 3 px": ("shake", 3),
    "noise 8": ("noise", 8),
    "noise 16": ("noise", 16),
}
HELD_OUT_SEED = 7919  # no seed of a run: those are small


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is learned from and measured on."""

    train_clips: int = 512
    held_out_clips: int = 128


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """One training that came to its end, and what was measured on its policy."""

    arm: str
    seed: int
    measured: Mapping[str, Mapping[str, float]]  # footage, or HALFWAY -> measure -> value


def train_and_measure(arm: str, seed: int, home: Path, family: str, scale: Scale, overrides: Sequence[str]) -> Path:
    """Fine-tune one arm with one seed and measure its policy; what is there already is left as it is.

    Returns:
        The file of what was measured.
    Raises:
        subprocess.CalledProcessError: the training failed, and said why.
    """
    folder = home / run_name(arm, seed, family)
    if not (folder / MEASURED).is_file():
        if arm == FEATURES:
            train_and_measure(TEACHER, seed, home, family, scale, overrides)
        arguments = _arguments(arm, seed, home, family, scale, overrides)
        if not is_finished(folder):
            train(arguments, command="finetune")
        _measure(folder, arguments, home, scale)
    return folder / MEASURED


def keep_finished(records: RunRecords, home: Path, arms: Sequence[str], seeds: Sequence[int], family: str) -> None:
    """Put on record what was measured on runs under `home` and is not there yet."""
    for name in (run_name(arm, seed, family) for arm in arms for seed in seeds):
        path = home / name / MEASURED
        if name not in records and path.is_file():
            records.add(name, json.loads(path.read_text(encoding="utf-8")))


def read(records: RunRecords, arms: Sequence[str], seeds: Sequence[int], family: str) -> list[FinishedRun]:
    """The runs on record, of those asked for."""
    asked = [(arm, seed, run_name(arm, seed, family)) for arm in arms for seed in seeds]
    return [FinishedRun(arm, seed, records[name]) for arm, seed, name in asked if name in records]


def run_name(arm: str, seed: int, family: str) -> str:
    """The folder of a run."""
    return f"{family}-{arm}-{seed}"


MEASURED = "measured.json"


def _arguments(arm: str, seed: int, home: Path, family: str, scale: Scale, overrides: Sequence[str]) -> list[str]:
    rows = render_shots(ShotWorld(clips=scale.train_clips, seed=seed), home / "footage")
    times = "none" if family == "qwen2_5_vl" else "text"  # the paper's layout, where the family has a clock of its own
    arguments = [
        str(ROOT / CONFIG),
        f"name={run_name(arm, seed, family)}",
        f"output_dir={home}",
        f"cache_dir={home / 'cache'}",
        f"seed={seed}",
        f"finetune.sources.shots.path={rows}",
        f"policy.tiny.family={family}",
        f"policy.scenes.timestamps={times}",
        *(f"policy.scenes.{key}={value}" for key, value in ARMS[arm].items()),
        *overrides,
    ]
    if arm == FEATURES:
        arguments.append(f"policy.path={_with_learned_features(arguments, home, seed, family)}")
    return arguments


def _with_learned_features(arguments: Sequence[str], home: Path, seed: int, family: str) -> Path:
    """The policy that the seed starts from, frames compared by the tower that the literal rule has trained: features of
    random weights would be pixels by another name."""
    from rl.policy.feature_file import write_features  # torch

    folder = features_folder(home, seed, family)
    if not folder.is_dir():
        start = prepare_policy(_loaded(arguments))
        draft = folder.with_name(f".{folder.name}")
        draft.mkdir(parents=True, exist_ok=True)
        for file in start.iterdir():
            (draft / file.name).write_bytes(file.read_bytes())
        write_features(policies_of(home / run_name(TEACHER, seed, family))[-1], draft)
        draft.rename(folder)
    return folder


def features_folder(home: Path, seed: int, family: str) -> Path:
    """The policy that a seed's arm of features starts from; not there before that arm has begun."""
    return home / "features" / f"{family}-{seed}"


def policies_of(run: Path) -> list[Path]:
    """The policies that a run has kept, by step; the last is that at its end."""
    return [folder / POLICY_FOLDER for folder in sorted((run / CHECKPOINTS).glob("step_*"))]


def _loaded(arguments: Sequence[str]) -> RunConfig:
    return load_config([arguments[0]], list(arguments[1:]))


def _measure(folder: Path, arguments: Sequence[str], home: Path, scale: Scale) -> None:
    from benchmarks.flexivideo.measure import PolicyUnderTest  # torch

    config, (halfway, *_, last) = _loaded(arguments), policies_of(folder)
    world = ShotWorld(clips=scale.held_out_clips, seed=HELD_OUT_SEED)
    footage = {name: render_shots(world.disturbed(*how), home / "footage") for name, how in FOOTAGE.items()}
    policy = PolicyUnderTest(config, last)
    found: dict[str, Any] = {name: policy.measure(rows) for name, rows in footage.items()}
    found[HALFWAY] = PolicyUnderTest(config, halfway).measure(footage[CLEAN])
    (folder / MEASURED).write_text(json.dumps(found, indent=1), encoding="utf-8")
