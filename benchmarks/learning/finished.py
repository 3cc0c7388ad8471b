"""What a finished run of the credit benchmark gave: its evaluations, and how rules credit the groups it sampled.

Legend: G siblings of one task.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.learning.runs import WORLDS, Run, ceiling_name
from benchmarks.records import RunRecords
from benchmarks.trainings import is_finished
from rl.algorithm.advantages import credit_group
from rl.config.algorithm import AdvantageConfig
from rl.tracking.metrics import current_names
from rl.trajectory import RewardFailure, SegmentRewards

MISSED, HIT = 0.3, 0.7  # IoU of a window that is wrong, and of one that is right
RULES = ("grpo", "gdpo", "sd_grpo")  # of the table of misplaced credit
CASES: Mapping[str, Callable[[Mapping[str, float]], bool]] = {
    f"right answer, wrong window (IoU < {MISSED})": lambda terms: terms["answer"] == 1 and terms["window"] < MISSED,
    f"right window (IoU > {HIT}), answer judged wrong": lambda terms: terms["answer"] == 0 and terms["window"] > HIT,
}
MEASURED = ("step", *(f"held_out/{name}" for name in ("tasks", "accuracy", "term/window", "frames", "reward/sampling")))


@dataclass(frozen=True, slots=True)
class Credited:
    """Sums of what a rule credits the trajectories of a case with.

    A look is credited with the wrong sign where its tokens get more than 0 although R_samp lies below the group's mean,
    or less although it lies above.
    """

    trajectories: int = 0
    look: float = 0.0
    answer: float = 0.0
    wrong_signs: int = 0

    def __add__(self, other: Credited) -> Credited:
        return Credited(
            self.trajectories + other.trajectories,
            self.look + other.look,
            self.answer + other.answer,
            self.wrong_signs + other.wrong_signs,
        )


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """One training that came to its end."""

    regime: str
    method: str
    seed: int
    held_out: tuple[Mapping[str, float], ...]  # an evaluation each, in order of steps; the first is before training
    credited: Mapping[str, Mapping[str, Credited]]  # case -> rule -> on the groups that the run sampled


def keep_finished(records: RunRecords, home: Path, asked: Iterable[Run], seeds: Iterable[int]) -> None:
    """Put on record what is finished under `home` and is not there yet: runs, and the worlds' ceilings."""
    for run in asked:
        if run.name not in records and is_finished(home / run.name):
            evaluations = [_measured(line) for line in _evaluations(home / run.name)]
            credited = credit(training_groups(home / run.name))
            sums = {case: {rule: asdict(one) for rule, one in rules.items()} for case, rules in credited.items()}
            records.add(run.name, {"held_out": evaluations, "credited": sums})
    for name in (ceiling_name(world, seed) for world in WORLDS for seed in seeds):
        if name not in records and is_finished(home / name):
            records.add(name, {"held_out": [_measured(line) for line in _evaluations(home / name)]})


def read(records: RunRecords, asked: Iterable[Run]) -> list[FinishedRun]:
    """The runs on record, of those asked for."""
    return [_finished(run, records[run.name]) for run in asked if run.name in records]


def ceilings(records: RunRecords, seeds: Sequence[int]) -> dict[str, list[float]]:
    """Held-out answer accuracy after supervised training on perfect looks, of the seeds that have it, by world."""
    names = {world: [ceiling_name(world, seed) for seed in seeds] for world in WORLDS}
    return {
        world: [records[name]["held_out"][-1]["held_out/accuracy"] for name in of_world if name in records]
        for world, of_world in names.items()
    }


def credit(groups: Iterable[Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Credited]]:
    """Case -> rule -> what each segment is credited with, on the very same groups."""
    sums = {case: dict.fromkeys(RULES, Credited()) for case in CASES}
    for group in groups:
        for case, rules in sums.items():
            for rule in rules:
                rules[rule] = sum(_credits(group, rule, CASES[case]), rules[rule])
    return sums


def training_groups(folder: Path) -> Iterator[list[dict[str, Any]]]:
    """Records of the groups of siblings that a run sampled, step by step."""
    for path in sorted((folder / "trajectories").glob("step_*.jsonl")):
        siblings: list[dict[str, Any]] = []
        for record in _lines(path):
            if record["sibling"] == 0 and siblings:
                yield siblings
                siblings = []
            siblings.append(record)
        if siblings:
            yield siblings


def _finished(run: Run, found: Mapping[str, Any]) -> FinishedRun:
    credited = {
        case: {rule: Credited(**sums) for rule, sums in rules.items()} for case, rules in found["credited"].items()
    }
    return FinishedRun(run.regime, run.method, run.seed, tuple(found["held_out"]), credited)


def _measured(line: Mapping[str, float]) -> dict[str, float]:
    return {name: line[name] for name in MEASURED if name in line}


def _evaluations(folder: Path) -> tuple[dict[str, float], ...]:
    return tuple(line for line in _lines(folder / "metrics.jsonl") if "held_out/tasks" in line)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from (current_names(json.loads(line)) for line in file)


def _credits(
    group: Sequence[Mapping[str, Any]], method: str, is_case: Callable[[Mapping[str, float]], bool]
) -> Iterator[Credited]:
    """Of each of the group's trajectories in the case."""
    rewards_G = [_reward(record["rewards"]) for record in group]
    called_G = [any(turn["call"] for turn in record["turns"]) for record in group]
    scored = [reward.sampling for reward in rewards_G if isinstance(reward, SegmentRewards)]
    if len(scored) < 2:
        return
    mean = fmean(scored)
    for own, reward, called in zip(
        credit_group(rewards_G, called_G, AdvantageConfig(method=method)).credit_G, rewards_G, called_G, strict=True
    ):
        if called and isinstance(reward, SegmentRewards) and is_case(reward.breakdown):
            has_wrong_sign = own.sampling * (reward.sampling - mean) < 0
            yield Credited(1, own.sampling, own.reasoning, int(has_wrong_sign))


def _reward(rewards: Mapping[str, Any]) -> SegmentRewards | RewardFailure:
    if "failed" in rewards:
        return RewardFailure(**rewards["failed"])
    return SegmentRewards(rewards["sampling"], rewards["reasoning"], rewards["terms"])
