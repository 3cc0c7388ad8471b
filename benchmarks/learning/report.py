"""What the runs of the credit benchmark show: tables as Markdown.

Legend: S seeds · G siblings of one task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.intervals import Interval, interval, signed
from benchmarks.learning.runs import REGIMES, WORLDS, FinishedRun
from rl.algorithm.advantages import credit_group
from rl.config.algorithm import AdvantageConfig
from rl.trajectory import RewardFailure, SegmentRewards

MISSED, HIT = 0.3, 0.7  # IoU of a window that is wrong, and of one that is right
RULES = ("grpo", "gdpo", "sd_grpo")  # of the table of misplaced credit
ACCURACY, WINDOW, PRICE = "answer accuracy", "IoU of the window", "frames / right answer"
METRICS = {ACCURACY: "held_out/accuracy", WINDOW: "held_out/term/window"}

Measure = Callable[[FinishedRun], float]


def at_end(metric: str) -> Measure:
    """A held-out number at the last evaluation."""
    return lambda run: run.held_out[-1][metric]


def over_curve(metric: str) -> Measure:
    """It on average over the evaluations after the first: how early it was reached."""
    return lambda run: fmean(line[metric] for line in run.held_out[1:])


def frames_per_right_answer(run: FinishedRun) -> float:
    """Retrieved frames that a right answer takes, at the last evaluation; infinite where no answer is right."""
    last = run.held_out[-1]
    return last["held_out/frames"] / last["held_out/accuracy"] if last["held_out/accuracy"] else math.inf


MEASURES: Mapping[str, Measure] = {
    f"{ACCURACY}, end": at_end(METRICS[ACCURACY]),
    f"{ACCURACY}, average": over_curve(METRICS[ACCURACY]),
    f"{WINDOW}, end": at_end(METRICS[WINDOW]),
    f"{WINDOW}, average": over_curve(METRICS[WINDOW]),
    PRICE: frames_per_right_answer,
}
FEWER_IS_BETTER = {PRICE}


def by_regime(runs: Sequence[FinishedRun]) -> dict[str, dict[str, list[FinishedRun]]]:
    """Runs of each regime, method by method."""
    sorted_out: dict[str, dict[str, list[FinishedRun]]] = {}
    for run in runs:
        sorted_out.setdefault(run.regime, {}).setdefault(run.method, []).append(run)
    return sorted_out


def outcome_table(runs: Sequence[FinishedRun]) -> Iterable[Sequence[str]]:
    """A row per regime and method: what it reached; and what the cold start had."""
    for regime, methods in by_regime(runs).items():
        starts = {run.seed: run for own in methods.values() for run in own}.values()
        before = [interval([run.held_out[0][METRICS[name]] for run in starts]) for name in (ACCURACY, WINDOW)]
        yield REGIMES[regime].title, "no RL", str(len(starts)), str(before[0]), "", str(before[1]), "", ""
        for method, own in methods.items():
            reached = (interval([measure(run) for run in own]) for measure in MEASURES.values())
            yield REGIMES[regime].title, method, str(len(own)), *map(str, reached)


def paired(own: Sequence[FinishedRun], other: Sequence[FinishedRun], measure: Measure) -> Interval | None:
    """One method minus another, seed by seed, over the seeds that both have; None: there is none."""
    of_seed = {run.seed: run for run in other}
    differences = [measure(run) - measure(of_seed[run.seed]) for run in own if run.seed in of_seed]
    return interval(differences) if differences else None


def difference_table(runs: Sequence[FinishedRun], reference: str = "grpo") -> Iterable[Sequence[str]]:
    """A row per regime and method: it minus the reference, seed by seed."""
    for regime, methods in by_regime(runs).items():
        others = methods.get(reference, [])
        for method, own in methods.items():
            seeds = {run.seed for run in own} & {run.seed for run in others}
            if method != reference and seeds:
                cells = (signed(paired(own, others, measure)) for measure in MEASURES.values())
                yield REGIMES[regime].title, f"{method} - {reference}", str(len(seeds)), *cells


def winner_table(runs: Sequence[FinishedRun]) -> Iterable[Sequence[str]]:
    """A row per regime: for each measure the method that is better than every other one with certainty, or those that
    cannot be told apart from the best."""
    for regime, methods in by_regime(runs).items():
        seeds = [len(own) for own in methods.values()]
        counted = str(min(seeds)) if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
        yield REGIMES[regime].title, counted, *(winner(methods, name) for name in MEASURES)


def winner(methods: Mapping[str, Sequence[FinishedRun]], name: str) -> str:
    """The winner of a regime by a measure."""
    measure, sign = MEASURES[name], -1 if name in FEWER_IS_BETTER else 1
    best = max(methods, key=lambda method: sign * fmean(measure(run) for run in methods[method]))
    level = [method for method in methods if method != best and not _is_told_apart(methods, best, method, measure)]
    if len(methods) == 1:
        return "nothing to compare"
    if not level:
        return f"**{best}**"
    return "not told apart" if len(level) == len(methods) - 1 else f"not told apart: {', '.join([best, *level])}"


def _is_told_apart(methods: Mapping[str, Sequence[FinishedRun]], best: str, other: str, measure: Measure) -> bool:
    difference = paired(methods[best], methods[other], measure)
    return difference is not None and difference.excludes_zero


def room_table(runs: Sequence[FinishedRun], ceilings: Mapping[str, Sequence[float]]) -> Iterable[Sequence[str]]:
    """A row per world: how often a guess, the cold start and supervised training on perfect looks are right."""
    for name, world in WORLDS.items():
        starts = {run.seed: run.held_out[0] for run in runs if REGIMES[run.regime].world == name}
        if not starts and not ceilings[name]:
            continue
        before = _over_seeds([line[METRICS[ACCURACY]] for line in starts.values()])
        yield name, f"{world.chance:.2f}", before, _over_seeds(ceilings[name])


def _over_seeds(values_S: Sequence[float]) -> str:
    seeds = f"{len(values_S)} seed{'s' if len(values_S) > 1 else ''}"
    return f"{interval(values_S)} ({seeds})" if values_S else ""


def credit_table(runs: Sequence[FinishedRun]) -> Iterable[Sequence[str]]:
    """A row per misplaced case and rule: what each segment is credited with, on the very same sampled groups.

    A look is credited with the wrong sign where its tokens get more than 0 although R_samp lies below the group's mean,
    or less although it lies above.
    """
    groups = [group for run in runs for group in run.training_records()]
    for case, is_case in CASES.items():
        for method in RULES:
            found = [pair for group in groups for pair in _credits(group, method, is_case)]
            if not found:
                continue
            looks, answers, wrong = zip(*found, strict=True)
            yield case, method, str(len(found)), f"{fmean(looks):+.2f}", f"{fmean(answers):+.2f}", f"{fmean(wrong):.0%}"


CASES: Mapping[str, Callable[[Mapping[str, float]], bool]] = {
    f"right answer, wrong window (IoU < {MISSED})": lambda terms: terms["answer"] == 1 and terms["window"] < MISSED,
    f"right window (IoU > {HIT}), answer judged wrong": lambda terms: terms["answer"] == 0 and terms["window"] > HIT,
}


def _credits(
    group: Sequence[Mapping[str, Any]], method: str, is_case: Callable[[Mapping[str, float]], bool]
) -> Iterable[tuple[float, float, bool]]:
    """(credit of the look, of the answer, has the look's the wrong sign) of the group's trajectories in the case."""
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
            yield own.sampling, own.reasoning, own.sampling * (reward.sampling - mean) < 0


def _reward(rewards: Mapping[str, Any]) -> SegmentRewards | RewardFailure:
    if "failed" in rewards:
        return RewardFailure(**rewards["failed"])
    return SegmentRewards(rewards["sampling"], rewards["reasoning"], rewards["terms"])
