"""What the runs of the density benchmark show: tables as Markdown, figures as PNG.

Legend: S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.density.looks import episodes as episodes_of
from benchmarks.density.looks import measures, rate_by_need, right_by_need
from benchmarks.density.runs import ARMS, FinishedRun
from benchmarks.intervals import Interval, interval, signed

OUTCOMES = ("accuracy", "episodes that show it", "looks", "looks that show it", "window s")
DENSITY = ("asked / needed", "enough", "octaves off", "slope")
COSTS = ("frames", "frames per right answer", "look tokens", "visual tokens", "prompt tokens", "written tokens")
TOTAL = "tokens per right answer"
COMPARED = ("accuracy", "frames", "frames per right answer", TOTAL, "octaves off", "slope")
HEAVY, LIGHT = "#0072B2", "#999999"


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """One run's evaluations, before reinforcement learning and after it."""

    arm: str
    seed: int
    before: Mapping[str, float]
    after: Mapping[str, float]
    rates_before: Mapping[float, float]  # needed rate -> rate that was looked at
    rates_after: Mapping[float, float]
    right_before: Mapping[float, float]  # needed rate -> share of right answers
    right_after: Mapping[float, float]


def measure(run: FinishedRun) -> MeasuredRun:
    """Read what a run's evaluations hold."""
    first, last = episodes_of(run, 0), episodes_of(run, -1)
    by_need = (rate_by_need(first), rate_by_need(last), right_by_need(first), right_by_need(last))
    return MeasuredRun(run.arm, run.seed, measures(first), measures(last), *by_need)


def by_arm(runs: Iterable[MeasuredRun]) -> dict[str, list[MeasuredRun]]:
    """Runs of each arm, in the arms' own order."""
    runs = list(runs)
    found = {arm: [run for run in runs if run.arm == arm] for arm in ARMS}
    return {arm: own for arm, own in found.items() if own}


def table(runs: Sequence[MeasuredRun], columns: Sequence[str]) -> Iterator[Sequence[str]]:
    """A row per arm after reinforcement learning, below what each cold start had before it."""
    for title, own, when in _rows(runs):
        yield title, *(str(interval([getattr(run, when)[column] for run in own])) for column in columns)


def differences(runs: Sequence[MeasuredRun], reference: str) -> Iterator[Sequence[str]]:
    """A row per arm: it minus the reference, seed by seed, after reinforcement learning."""
    arms = by_arm(runs)
    of_seed = {run.seed: run for run in arms.get(reference, [])}
    for arm, own in arms.items():
        pairs = [(run, of_seed[run.seed]) for run in own if run.seed in of_seed]
        if arm == reference or not pairs:
            continue
        found = (interval([ours.after[c] - theirs.after[c] for ours, theirs in pairs]) for c in COMPARED)
        yield f"{ARMS[arm].title} - {ARMS[reference].title}", str(len(pairs)), *map(signed, found)


def by_need_table(
    runs: Sequence[MeasuredRun], what: str, cell: Callable[[Sequence[float]], str]
) -> tuple[Sequence[str], Iterator[Sequence[str]]]:
    """Headings and rows: something by the rate that was needed.

    Args:
        what: rates | right.
        cell: of the seeds' values.
    """
    needs = sorted({need for run in runs for need in run.right_after})

    def rows() -> Iterator[Sequence[str]]:
        for title, own, when in _rows(runs):
            values_S = [getattr(run, f"{what}_{when}") for run in own]
            known = [[values[need] for values in values_S if need in values] for need in needs]
            yield title, *(cell(of_seeds) if of_seeds else "–" for of_seeds in known)

    return ("arm", *(f"needs {need:g}" for need in needs)), rows()


def rate_cell(rates_S: Sequence[float]) -> str:
    """Their geometric mean and its interval."""
    return str(_in_octaves(rates_S)[0])


def share_cell(shares_S: Sequence[float]) -> str:
    """Their mean and its interval."""
    return str(interval(shares_S))


def _rows(runs: Sequence[MeasuredRun]) -> Iterator[tuple[str, list[MeasuredRun], str]]:
    """Title, runs, and which evaluation: a row per cold start, then one per arm."""
    arms = by_arm(runs)
    for severally in (False, True):
        if own := next((arms[arm] for arm in arms if ARMS[arm].looks_severally is severally), None):
            yield f"*before, {'three calls' if severally else 'one call'}*", own, "before"
    for arm, own in arms.items():
        yield ARMS[arm].title, own, "after"


def _in_octaves(rates_S: Sequence[float]) -> tuple[Interval, float, float]:
    """The geometric mean of rates with its interval in frames per second (half its width), and both ends."""
    logs = interval([math.log(rate) for rate in rates_S])
    low, high = (math.exp(logs.mean + sign * logs.half) for sign in (-1, 1))
    return Interval(math.exp(logs.mean), (high - low) / 2), low, high


def plot_curves(runs: Sequence[MeasuredRun], path: Path) -> None:
    """Asked rate over needed rate, an axes per arm: before and after, means over seeds with their 95 % intervals."""
    from matplotlib.figure import Figure  # of the dev extra

    arms = by_arm(runs)
    columns = min(5, len(arms))
    figure = Figure(figsize=(2.6 * columns, 2.9 * math.ceil(len(arms) / columns) + 0.4), layout="constrained")
    grid = figure.subplots(math.ceil(len(arms) / columns), columns, sharex=True, sharey=True, squeeze=False)
    for axes, (arm, own) in zip(grid.flat, arms.items(), strict=False):
        _plot_rates(axes, [run.rates_before for run in own], LIGHT, "before RL")
        _plot_rates(axes, [run.rates_after for run in own], HEAVY, "after RL")
        _rate_axes(axes, sorted({need for run in own for need in run.right_after}))
        axes.set_title(ARMS[arm].title, fontsize=9)
    for axes in list(grid.flat)[len(arms) :]:
        axes.set_visible(False)
    figure.supxlabel("needed rate, fps", fontsize=9)
    figure.supylabel("rate looked at, fps (last call)", fontsize=9)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def _plot_rates(axes: Any, rates_S: Sequence[Mapping[float, float]], colour: str, name: str) -> None:
    needs = sorted(set.intersection(*(set(rates) for rates in rates_S)))
    if not needs:
        return
    points = [_in_octaves([rates[need] for rates in rates_S]) for need in needs]
    axes.plot(needs, [mean.mean for mean, _, _ in points], "o-", markersize=3, color=colour, label=name)
    if len(rates_S) > 1:
        axes.fill_between(needs, [p[1] for p in points], [p[2] for p in points], color=colour, alpha=0.2, linewidth=0)


def _rate_axes(axes: Any, needs: Sequence[float]) -> None:
    axes.plot(needs, needs, "--", color="black", linewidth=0.9, label="what is needed")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_ylim(1, 16)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(needs, [f"{need:g}" for need in needs])
        axis.set_tick_params(labelsize=8)
        axis.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)


def plot_costs(runs: Sequence[MeasuredRun], path: Path) -> None:
    """Accuracy over what was inserted, frames and tokens: a point per seed, the mean of an arm with its name."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    arms = by_arm(runs)
    for axes, cost in zip(figure.subplots(1, 2, sharey=True), ("frames", "look tokens"), strict=True):
        for number, (arm, own) in enumerate(arms.items()):
            colour, (x, y) = f"C{number % 10}", ([run.after[c] for run in own] for c in (cost, "accuracy"))
            axes.scatter(x, y, s=14, color=colour, alpha=0.4, linewidths=0)
            axes.scatter(sum(x) / len(x), sum(y) / len(y), s=60, color=colour, label=ARMS[arm].title)
        axes.set_xlabel(f"{cost} inserted per episode")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    figure.axes[0].set_ylabel("answer accuracy, held out")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
