"""Figures of the credit benchmark: differences by regime, and curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.intervals import interval
from benchmarks.learning.finished import FinishedRun
from benchmarks.learning.report import ACCURACY, MEASURES, METRICS, WINDOW, by_regime, paired
from benchmarks.learning.runs import METHODS, REGIMES

COLOURS = {
    "grpo": "#D55E00",
    "gdpo": "#E69F00",
    "sd_grpo": "#0072B2",
    "sd_grpo-scheduled": "#009E73",
    "sd_grpo-each": "#CC79A7",
}


def plot_differences(runs: Sequence[FinishedRun], path: Path, reference: str = "grpo") -> None:
    """Every method minus the reference, seed by seed: a row per regime, a panel per measure, with 95 % intervals."""
    from matplotlib.figure import Figure  # of the dev extra

    regimes, names = by_regime(runs), list(MEASURES)
    figure = Figure(figsize=(3 * len(names), 1.2 + 0.6 * len(regimes)), layout="constrained")
    shown = [method for method in METHODS if method != reference and any(method in own for own in regimes.values())]
    for axes, name in zip(figure.subplots(1, len(names), sharey=True, squeeze=False)[0], names, strict=True):
        for row, methods in enumerate(regimes.values()):
            for place, method in enumerate(shown):
                found = paired(methods.get(method, []), methods.get(reference, []), MEASURES[name])
                if found is not None:
                    at = row + 0.18 * (place - (len(shown) - 1) / 2)
                    error = 0.0 if math.isnan(found.half) else found.half
                    style = {"fmt": "o", "markersize": 4, "color": COLOURS[method], "label": method}
                    axes.errorbar(found.mean, at, xerr=error, **style)
        axes.axvline(0, color="grey", linewidth=0.8)
        axes.set_yticks(range(len(regimes)), [REGIMES[regime].title for regime in regimes])
        axes.set_title(f"{name},\nminus {reference}", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    axes.invert_yaxis()
    _legend(figure)
    figure.savefig(path, dpi=150)


def plot_curves(runs: Sequence[FinishedRun], path: Path) -> None:
    """Held-out accuracy and IoU over steps, regime by regime: means over seeds with their 95 % intervals."""
    from matplotlib.figure import Figure  # of the dev extra

    regimes = by_regime(runs)
    figure = Figure(figsize=(1 + 2.3 * len(regimes), 5), layout="constrained")
    panels = figure.subplots(2, len(regimes), sharex=True, sharey="row", squeeze=False)
    for row, measure in zip(panels, (ACCURACY, WINDOW), strict=True):
        for axes, (regime, methods) in zip(row, regimes.items(), strict=True):
            for method, own in methods.items():
                _plot_band(axes, own, METRICS[measure], method)
            axes.set_title(REGIMES[regime].title if measure == ACCURACY else "", fontsize=9)
            axes.set_xlabel("step" if measure == WINDOW else "")
            axes.grid(alpha=0.2)
            axes.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel(f"{measure}, held out")
    _legend(figure)
    figure.savefig(path, dpi=150)


def _plot_band(axes: Any, runs: Sequence[FinishedRun], metric: str, method: str) -> None:
    """One method's curve, over the evaluations that all its runs have."""
    curves = [[line[metric] for line in run.held_out] for run in runs]
    points = [interval(values_S) for values_S in zip(*curves, strict=False)]
    steps = [line["step"] for line in runs[0].held_out][: len(points)]
    axes.plot(steps, [point.mean for point in points], label=method, color=COLOURS[method], linewidth=1.6)
    if len(runs) > 1:
        low, high = zip(*((point.mean - point.half, point.mean + point.half) for point in points), strict=True)
        axes.fill_between(steps, low, high, color=COLOURS[method], alpha=0.12, linewidth=0)


def _legend(figure: Any) -> None:
    """Each method once, however many panels show it."""
    handles = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    ordered = [method for method in COLOURS if method in handles]
    figure.legend(
        [handles[method] for method in ordered], ordered, loc="outside upper center", ncols=5, frameon=False, fontsize=9
    )
