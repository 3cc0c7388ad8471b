"""What the runs of the learning proof show: tables as Markdown, curves as PNG.

Legend: S seeds · G siblings of one task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from scipy import stats

from benchmarks.learning.runs import METHODS, FinishedRun, kind_of
from rl.algorithm.advantages import credit_group
from rl.config.algorithm import AdvantageConfig
from rl.trajectory import RewardFailure, SegmentRewards

LATE = 10  # last steps over which a training number is averaged
MISSED, HIT = 0.3, 0.7  # IoU of a window that is wrong, and of one that is right
COLOURS = {"grpo": "#D55E00", "gdpo": "#E69F00", "sd_grpo": "#0072B2"}

MEASURES: Mapping[str, tuple[str, str]] = {  # heading -> (where, metric)
    "IoU of the window": ("held_out", "held_out/term/window"),
    "frame-rate match": ("held_out", "held_out/term/frame_rate"),
    "answer accuracy": ("held_out", "held_out/accuracy"),
    "share of calls": ("held_out", "held_out/granted_calls"),
    "frames / trajectory": ("held_out", "held_out/frames"),
    "groups with zero variance in R_samp": ("steps", "group/zero_variance_sampling"),
    "in R_reason": ("steps", "group/zero_variance_reasoning"),
    "in both": ("steps", "group/zero_variance_both"),
}
CURVES = ("IoU of the window", "frame-rate match", "answer accuracy")


@dataclass(frozen=True, slots=True)
class Interval:
    """Mean over seeds and Student's 95 % interval of it."""

    mean: float
    half: float  # nan for a single seed

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.half:.3f}"

    @property
    def excludes_zero(self) -> bool:
        """The sign is certain at 95 %."""
        return abs(self.mean) > self.half


def interval(values_S: Sequence[float]) -> Interval:
    """Of a number that each seed gave once."""
    if len(values_S) < 2:
        return Interval(fmean(values_S), math.nan)
    return Interval(fmean(values_S), float(stats.t.ppf(0.975, len(values_S) - 1) * stats.sem(values_S)))


def outcome_table(runs: Sequence[FinishedRun]) -> Iterable[Sequence[str]]:
    """A row per variant: what it reached at its last evaluation, and before any reinforcement learning."""
    first_variant = [run for run in runs if run.variant == runs[0].variant]
    yield (
        "no RL",
        *(
            str(interval([run.held_out[0][metric] for run in first_variant])) if where == "held_out" else ""
            for where, metric in MEASURES.values()
        ),
    )
    for variant, own in by_variant(runs).items():
        yield variant, *(str(interval([reached(run, measure) for run in own])) for measure in MEASURES)


def difference_table(runs: Sequence[FinishedRun], reference: str = "sd_grpo") -> Iterable[Sequence[str]]:
    """A row per variant: it minus the reference, seed by seed, at the end and on average over the curve."""
    variants = by_variant(runs)
    of_seed = {run.seed: run for run in variants.get(reference, [])}
    for variant, own in variants.items():
        pairs = [(run, of_seed[run.seed]) for run in own if run.seed in of_seed]
        if variant == reference or not pairs:
            continue
        cells = []
        for measure in CURVES:
            at_end = interval([reached(ours, measure) - reached(theirs, measure) for ours, theirs in pairs])
            on_average = interval([area(ours, measure) - area(theirs, measure) for ours, theirs in pairs])
            cells += [_signed(at_end), _signed(on_average)]
        yield f"{variant} - {reference}", str(len(pairs)), *cells


def kind_table(runs: Sequence[FinishedRun], kinds: Sequence[str]) -> Iterable[Sequence[str]]:
    """A row per variant and kind of question: window and answer at the last evaluation."""
    for variant, own in by_variant(runs).items():
        for kind in kinds:
            scored = [list(_scored(run, kind, kinds)) for run in own]
            columns = (
                [fmean(terms[name] for terms in of_run) for of_run in scored]
                for name in ("window", "frame_rate", "answer")
            )
            yield variant, kind, *(str(interval(values_S)) for values_S in columns)


def credit_table(runs: Sequence[FinishedRun]) -> Iterable[Sequence[str]]:
    """A row per misplaced case and rule: what each segment is credited with, on the very same sampled groups.

    A look is credited with the wrong sign where its tokens get more than 0 although R_samp lies below the group's mean,
    or less although it lies above.
    """
    groups = [group for run in runs for group in run.training_records()]
    for case, is_case in CASES.items():
        for method in METHODS:
            found = [pair for group in groups for pair in _credits(group, method, is_case)]
            if not found:
                continue
            looks, answers, wrong = zip(*found, strict=True)
            yield case, method, str(len(found)), f"{fmean(looks):+.2f}", f"{fmean(answers):+.2f}", f"{fmean(wrong):.0%}"


CASES: Mapping[str, Callable[[Mapping[str, float]], bool]] = {
    f"right answer, wrong window (IoU < {MISSED})": lambda terms: terms["answer"] == 1 and terms["window"] < MISSED,
    f"right window (IoU > {HIT}), answer judged wrong": lambda terms: terms["answer"] == 0 and terms["window"] > HIT,
}


def plot_curves(runs: Sequence[FinishedRun], path: Path, reference: str = "grpo") -> None:
    """Held-out measures over steps: above as they are, below as differences from the reference seed by seed; means over
    seeds with their 95 % intervals."""
    from matplotlib.figure import Figure  # of the dev extra

    figure = Figure(figsize=(11, 6), layout="constrained")
    above, below = figure.subplots(2, len(CURVES), sharex=True)
    variants = by_variant(runs)
    of_seed = {run.seed: run for run in variants.get(reference, [])}
    for measure, axes, difference_axes in zip(CURVES, above, below, strict=True):
        metric = MEASURES[measure][1]
        for variant, own in variants.items():
            curves = [[line[metric] for line in run.held_out] for run in own]
            _plot_band(axes, own[0].held_out, zip(*curves, strict=True), variant)
            pairs = [(curve, of_seed[run.seed]) for curve, run in zip(curves, own, strict=True) if run.seed in of_seed]
            differences = [
                [value - line[metric] for value, line in zip(curve, other.held_out, strict=True)]
                for curve, other in pairs
            ]
            _plot_band(difference_axes, own[0].held_out, zip(*differences, strict=True), variant)
        axes.set_title(f"{measure}, held out", fontsize=10)
        difference_axes.set_title(f"minus {reference}, seed by seed", fontsize=10)
        difference_axes.set_xlabel("step")
    handles, labels = above[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    figure.savefig(path, dpi=150)


def _plot_band(
    axes: Any, held_out: Sequence[Mapping[str, float]], values: Iterable[Sequence[float]], name: str
) -> None:
    """One curve: the mean over seeds at each evaluation, and its interval as a band."""
    steps, points = [line["step"] for line in held_out], [interval(values_S) for values_S in values]
    axes.plot(steps, [point.mean for point in points], label=name, color=COLOURS[name], linewidth=1.8)
    if not math.isnan(points[0].half):
        low, high = zip(*((point.mean - point.half, point.mean + point.half) for point in points), strict=True)
        axes.fill_between(steps, low, high, color=COLOURS[name], alpha=0.15, linewidth=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)


def by_variant(runs: Sequence[FinishedRun]) -> dict[str, list[FinishedRun]]:
    """Runs of each variant, in the order they first appear."""
    variants: dict[str, list[FinishedRun]] = {}
    for run in runs:
        variants.setdefault(run.variant, []).append(run)
    return variants


def reached(run: FinishedRun, measure: str) -> float:
    """A measure at the end of a run."""
    where, metric = MEASURES[measure]
    if where == "held_out":
        return run.held_out[-1][metric]
    return fmean(line[metric] for line in run.steps[-LATE:])


def area(run: FinishedRun, measure: str) -> float:
    """A held-out measure on average over the evaluations after the first: how early it was reached."""
    return fmean(line[MEASURES[measure][1]] for line in run.held_out[1:])


def _scored(run: FinishedRun, kind: str, kinds: Sequence[str]) -> Iterable[Mapping[str, float]]:
    records = run.held_out_records(run.held_out[-1]["step"])
    return (r["rewards"]["terms"] for r in records if kind_of(r, kinds) == kind and "terms" in r["rewards"])


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


def _signed(found: Interval) -> str:
    text = f"{found.mean:+.3f} ± {found.half:.3f}"
    return f"**{text}**" if found.excludes_zero else text
