"""What the runs of the credit benchmark show: tables as Markdown.

Legend: S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean

from benchmarks.intervals import Interval, interval, signed
from benchmarks.learning.finished import CASES, RULES, Credited, FinishedRun
from benchmarks.learning.runs import METHODS, REGIMES, WORLDS

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
    """A row per regime and method: it minus the reference, seed by seed; in the end the mean over regimes of each seed,
    of methods that all regimes have."""
    regimes = by_regime(runs)
    for regime, methods in regimes.items():
        others = methods.get(reference, [])
        for method, own in methods.items():
            seeds = {run.seed for run in own} & {run.seed for run in others}
            if method != reference and seeds:
                cells = (signed(paired(own, others, measure)) for measure in MEASURES.values())
                yield REGIMES[regime].title, f"{method} - {reference}", str(len(seeds)), *cells
    if len(regimes) > 1:
        for method in METHODS:
            if method != reference and all({method, reference} <= own.keys() for own in regimes.values()):
                yield from _mean_row(regimes, method, reference)


def _mean_row(
    regimes: Mapping[str, Mapping[str, Sequence[FinishedRun]]], method: str, reference: str
) -> Iterable[Sequence[str]]:
    """Over the seeds that every regime has of both."""
    tables = [{(run.method, run.seed): run for each in own.values() for run in each} for own in regimes.values()]
    seeds = sorted(
        {seed for _, seed in tables[0] if all({(method, seed), (reference, seed)} <= t.keys() for t in tables)}
    )
    if seeds:
        cells = (
            signed(interval([fmean(measure(t[method, s]) - measure(t[reference, s]) for t in tables) for s in seeds]))
            for measure in MEASURES.values()
        )
        yield f"mean of {len(regimes)} regimes", f"{method} - {reference}", str(len(seeds)), *cells


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
    """A row per misplaced case and rule: what each segment is credited with, on the very same sampled groups."""
    for case in CASES:
        for rule in RULES:
            found = sum((run.credited[case][rule] for run in runs), Credited())
            if found.trajectories:
                look, answer, wrong = (
                    total / found.trajectories for total in (found.look, found.answer, found.wrong_signs)
                )
                yield case, rule, str(found.trajectories), f"{look:+.2f}", f"{answer:+.2f}", f"{wrong:.0%}"
