"""What the runs of the ablation show: tables as Markdown, and accuracy against visual tokens as a picture.

Legend: S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from benchmarks.flexivideo.runs import ARMS, CLEAN, FOOTAGE, HALFWAY, FinishedRun
from benchmarks.intervals import Interval, interval, signed
from envs.synthetic.shot_world import CHANCE, QUESTIONS

PIXEL_RULE, NEW_RULES = "dynamic", ("adaptive", "features")
WINDOWS = ("pairs", "sixes")
KINDS = (*(f"accuracy/{kind}" for kind in QUESTIONS), "accuracy")
COSTS = {
    "scenes": "scenes / clip",
    "scenes_per_frame": "scenes / frame",
    "visual_tokens": "visual tokens / clip",
    "gflops": "GFLOPs to learn from a clip",
    "peak_mib": "peak MiB",
}
COLOURS = {  # told apart by the colour-blind
    "pairs": "#444444",
    "sixes": "#999999",
    "dynamic": "#D55E00",
    "budget": "#E69F00",
    "adaptive": "#009E73",
    "features": "#CC79A7",
}


def by_arm(runs: Sequence[FinishedRun]) -> dict[str, list[FinishedRun]]:
    """Runs of each arm that has any, in the order of ARMS."""
    found = {arm: [run for run in runs if run.arm == arm] for arm in ARMS}
    return {arm: own for arm, own in found.items() if own}


def over_seeds(runs: Sequence[FinishedRun], measure: str, footage: str = CLEAN) -> Interval:
    """Mean of a measure over seeds, with Student's interval."""
    return interval([run.measured[footage][measure] for run in runs])


def difference(
    ours: Sequence[FinishedRun], theirs: Sequence[FinishedRun], measure: str, footage: str = CLEAN
) -> Interval | None:
    """Mean of the differences seed by seed; None: no seed has both."""
    of_seed = {run.seed: run.measured[footage][measure] for run in theirs}
    values_S = [run.measured[footage][measure] - of_seed[run.seed] for run in ours if run.seed in of_seed]
    return interval(values_S) if values_S else None


def accuracy_table(runs: Sequence[FinishedRun]) -> Iterator[Sequence[str]]:
    """A row per arm: accuracy by kind of question and over all on the footage as it was learned from; on motion also
    after half the steps."""
    for arm, own in by_arm(runs).items():
        halfway = over_seeds(own, "accuracy/motion", HALFWAY)
        yield arm, *(str(over_seeds(own, kind)) for kind in KINDS), str(halfway)


def cost_table(runs: Sequence[FinishedRun]) -> Iterator[Sequence[str]]:
    """A row per arm: what a clip of that footage costs."""
    for arm, own in by_arm(runs).items():
        yield arm, *(f"{over_seeds(own, cost).mean:.3g}" for cost in COSTS)


def difference_table(runs: Sequence[FinishedRun]) -> Iterator[Sequence[str]]:
    """A row per arm that is no window of fixed length: it minus either window, seed by seed."""
    arms = by_arm(runs)
    for arm in (name for name in arms if name not in WINDOWS):
        pairs = [(window, difference(arms[arm], arms[window], "accuracy")) for window in WINDOWS if window in arms]
        motion = [difference(arms[arm], arms[window], "accuracy/motion") for window in WINDOWS if window in arms]
        tokens = over_seeds(arms[arm], "visual_tokens").mean
        yield arm, f"{tokens:.1f}", *(signed(found) for _, found in pairs), *map(signed, motion)


def claim(runs: Sequence[FinishedRun], arm: str) -> str:
    """Whether an arm beats both windows of fixed length at a number of tokens between theirs: the paper's claim."""
    arms = by_arm(runs)
    if not {arm, *WINDOWS} <= arms.keys():
        return f"`{arm}`: cannot be told yet, runs are missing."
    tokens = {name: over_seeds(arms[name], "visual_tokens").mean for name in (arm, *WINDOWS)}
    is_between = min(tokens[window] for window in WINDOWS) < tokens[arm] < max(tokens[window] for window in WINDOWS)
    found = {window: difference(arms[arm], arms[window], "accuracy") for window in WINDOWS}
    if any(one is None or math.isnan(one.half) for one in found.values()):
        return f"`{arm}`: cannot be told yet, fewer than two seeds have it and both windows."
    beaten = [window for window, one in found.items() if one.mean > 0 and one.excludes_zero]
    lost = [window for window, one in found.items() if one.mean < 0 and one.excludes_zero]
    verdict = "beats both windows" if len(beaten) == 2 else f"beats {beaten[0]} alone" if beaten else "beats neither"
    verdict += f", and is worse than {' and '.join(lost)}" if lost else ""
    where = "between theirs" if is_between else "not between theirs"
    numbers = "; ".join(f"{signed(one)} against {window}" for window, one in found.items())
    return (
        f"`{arm}` {verdict} (sign certain at 95 %), at {tokens[arm]:.1f} visual tokens a clip, {where} "
        f"({tokens['sixes']:.1f} and {tokens['pairs']:.1f}): {numbers}."
    )


def footage_table(
    runs: Sequence[FinishedRun], measure: str, show: Callable[[Interval], str]
) -> Iterable[Sequence[str]]:
    """A row per disturbance: a measure of every arm."""
    arms = by_arm(runs)
    for footage in FOOTAGE:
        yield footage, *(show(over_seeds(own, measure, footage)) for own in arms.values())


def breaks_table(runs: Sequence[FinishedRun]) -> Iterable[Sequence[str]]:
    """A row per disturbance: what it does to the pixel rule, and what each other rule buys against it."""
    arms = by_arm(runs)
    if PIXEL_RULE not in arms:
        return
    pixels = arms[PIXEL_RULE]
    for footage in FOOTAGE:
        tokens = over_seeds(pixels, "visual_tokens", footage).mean / over_seeds(pixels, "visual_tokens").mean
        lost = interval([run.measured[footage]["accuracy"] - run.measured[CLEAN]["accuracy"] for run in pixels])
        cells = [f"x {tokens:.2f}", signed(lost)]
        for rule in NEW_RULES:
            own = arms.get(rule, [])
            gained = difference(own, pixels, "accuracy", footage)
            saved = difference(own, pixels, "visual_tokens", footage)
            cells += [signed(gained), "" if saved is None else f"{saved.mean:+.1f}"]
        yield footage, *cells


def plot(runs: Sequence[FinishedRun], path: Path) -> None:
    """Accuracy against visual tokens per clip: one panel per kind of question on the footage that was learned from, and
    one over all kinds in which an arm's other points are the disturbed footage."""
    from matplotlib.figure import Figure  # of the dev extra

    figure = Figure(figsize=(15, 4.2), layout="constrained")
    panels, arms = figure.subplots(1, len(KINDS) + 1, sharey=True), by_arm(runs)
    for axes, kind in zip(panels, KINDS, strict=False):
        for arm, own in arms.items():
            _point(axes, own, kind, CLEAN, arm)
        _dress(axes, "all questions" if kind == "accuracy" else kind.removeprefix("accuracy/"))
    for arm, own in arms.items():
        for footage in FOOTAGE:
            _point(panels[-1], own, "accuracy", footage, arm)
    _dress(panels[-1], "all questions, disturbed footage (small)")
    panels[0].set_ylabel("held-out accuracy")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), frameon=False)
    figure.savefig(path, dpi=140)


def _point(axes, own: Sequence[FinishedRun], kind: str, footage: str, arm: str) -> None:
    accuracy, tokens = over_seeds(own, kind, footage), fmean(run.measured[footage]["visual_tokens"] for run in own)
    is_clean = footage == CLEAN
    half = accuracy.half if is_clean and len(own) > 1 else None
    axes.errorbar(
        tokens,
        accuracy.mean,
        yerr=half,
        fmt="o",
        markersize=8 if is_clean else 3.5,
        alpha=1 if is_clean else 0.6,
        capsize=3,
        color=COLOURS[arm],
        label=arm if is_clean else None,
    )


def _dress(axes, title: str) -> None:
    axes.axhline(CHANCE, color="#bbbbbb", linewidth=1, linestyle=":")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("visual tokens per clip")
    axes.set_ylim(0, 1.02)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)


FOOTAGE_TABLES: Mapping[str, tuple[str, Callable[[Interval], str]]] = {
    "Accuracy over all questions": ("accuracy", str),
    "Accuracy on motion": ("accuracy/motion", str),
    "Visual tokens per clip": ("visual_tokens", lambda found: f"{found.mean:.1f}"),
}
