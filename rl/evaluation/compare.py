"""`dynframe compare`: evaluations side by side, each against the first, on the examples both have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rl.evaluation.intervals import PairedDifference, compare_paired, interval_text
from rl.evaluation.predictions import (
    EVALUATIONS,
    METRICS,
    PREDICTIONS,
    EvaluationError,
    Outcome,
    read_json,
    read_outcomes,
)
from rl.evaluation.readings import STRICT, as_read, in_either

REMEDY = "give RUN/eval/NAME, or a RUN that `dynframe eval` has evaluated"
COMPARED_KEYS = (
    "benchmark",
    "examples",
    "rewards.",
    "scoring.calls",
)  # prefixes of an identity's keys that must be equal to compare


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A finished evaluation, as it lies on disk."""

    label: str
    folder: Path
    report: Mapping[str, Any]  # metrics.json
    outcomes: Mapping[str, Outcome]  # by task id


@dataclass(frozen=True, slots=True)
class Comparison:
    """Evaluations, and how each but the first differs from the first, by metric."""

    evaluations: tuple[Evaluation, ...]
    differences: tuple[
        Mapping[str, PairedDifference], ...
    ]  # of evaluations[1:]; metrics without common examples absent

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "benchmark": self.evaluations[0].report["benchmark"],
            "runs": [
                {"label": one.label, "folder": str(one.folder), "metrics": one.report["metrics"]}
                for one in self.evaluations
            ],
            "differences": [
                {
                    "run": one.label,
                    "to": self.evaluations[0].label,
                    "metrics": {name: asdict(difference) for name, difference in found.items()},
                }
                for one, found in zip(self.evaluations[1:], self.differences, strict=True)
            ],
        }


def load_evaluations(paths: Sequence[Path], name: str = "") -> tuple[Evaluation, ...]:
    """Evaluations from folders of them, their metrics.json, or runs.

    Args:
        name: of the evaluation, where a path is a run; empty: the one that all runs have in common.
    Raises:
        EvaluationError: there is none, it is not finished, or several could be meant.
    """
    runs = [path for path in paths if (path / EVALUATIONS).is_dir()]
    if runs and not name:
        name = _name_in_common(runs)
    folders = [_folder(path, name) for path in paths]
    labels = _labels(folders)
    return tuple(_load(folder, label) for folder, label in zip(folders, labels, strict=True))


def compare(evaluations: Sequence[Evaluation]) -> Comparison:
    """Every evaluation against the first, metric by metric, on the examples that both have a value for.

    Raises:
        EvaluationError: they are not comparable: of other examples, or scored in another way.
    """
    first = evaluations[0]
    for other in evaluations[1:]:
        _require_comparable(first, other)
    return Comparison(tuple(evaluations), tuple(_differences(first, other) for other in evaluations[1:]))


def print_comparison(comparison: Comparison, console: Console) -> None:
    """A column per evaluation: value with interval; below, the difference to the first with its p-value."""
    evaluations = comparison.evaluations
    first = evaluations[0].report
    table = Table(title=escape(str(first["benchmark"])), pad_edge=False, show_lines=len(evaluations) > 1)
    table.add_column("")
    for evaluation in evaluations:
        table.add_column(escape(evaluation.label), justify="right")
    names = {name: None for evaluation in evaluations for name in evaluation.report["metrics"]}
    for name in sorted(names, key=lambda name: (name != first["headline"], name)):
        cells = [_cell(evaluation.report["metrics"].get(name)) for evaluation in evaluations]
        for column, found in enumerate(comparison.differences, start=1):
            cells[column] += f"\n{_difference_cell(found.get(name))}"
        table.add_row(f"[bold]{escape(name)}[/]" if name == first["headline"] else escape(name), *cells)
    console.print(table)
    if comparison.differences:
        console.print(
            f"differences to {evaluations[0].label}, on the n examples both have; p: two-sided sign-flip test, not "
            "corrected for the number of rows",
            markup=False,
            highlight=False,
        )


def _name_in_common(runs: Sequence[Path]) -> str:
    names = [{path.parent.name for path in (run / EVALUATIONS).glob(f"*/{METRICS}")} for run in runs]
    common = set.intersection(*names)
    if len(common) == 1:
        return common.pop()
    found = "; ".join(f"{run}: {', '.join(sorted(has)) or 'none'}" for run, has in zip(runs, names, strict=True))
    many = "several evaluations" if common else "no finished evaluation"
    raise EvaluationError(f"{many} in common ({found}); name one with --name, or give folders such as RUN/eval/NAME")


def _folder(path: Path, name: str) -> Path:
    if path.name == METRICS:
        return path.parent
    return path / EVALUATIONS / name if (path / EVALUATIONS).is_dir() else path


def _labels(folders: Sequence[Path]) -> list[str]:
    """The shortest distinct names: of the run, of run and evaluation, or the whole path."""
    places = [folder.absolute() for folder in folders]
    for label in (lambda place: place.parents[1].name, lambda place: f"{place.parents[1].name}/{place.name}", str):
        labels = [label(place) if len(place.parents) > 1 else str(place) for place in places]
        if max(Counter(labels).values()) == 1:
            return labels
    return labels


def _load(folder: Path, label: str) -> Evaluation:
    if not (folder / METRICS).is_file():
        begun = (folder / PREDICTIONS).is_file()
        remedy = "it is not finished: run its `dynframe eval` again" if begun else REMEDY
        raise EvaluationError(f"{folder}: no {METRICS} in it; {remedy}")
    report = read_json(folder / METRICS)
    absent = {"benchmark", "headline", "over_groups", "limit", "metrics", "identity"} - report.keys()
    if absent:
        raise EvaluationError(f"{folder / METRICS}: no metrics of an evaluation: {', '.join(sorted(absent))} missing")
    if not all(isinstance(report[key], dict) for key in ("metrics", "identity")):
        raise EvaluationError(f"{folder / METRICS}: metrics and identity must be objects")
    limit = report["limit"]
    outcomes = [outcome for outcome in read_outcomes(folder / PREDICTIONS) if not limit or outcome.index < limit]
    read = [replace(outcome, metrics=as_read(outcome.metrics, _reading(report))) for outcome in outcomes]
    return Evaluation(label, folder, report, {outcome.task_id: outcome for outcome in read})


def _require_comparable(first: Evaluation, other: Evaluation) -> None:
    one, two = first.report["identity"], other.report["identity"]
    differing = [
        key for key in sorted(one.keys() | two.keys()) if one.get(key) != two.get(key) and key.startswith(COMPARED_KEYS)
    ]
    readings = _reading(first.report), _reading(other.report)
    if readings[0] != readings[1]:
        raise EvaluationError(
            f"{first.folder} and {other.folder} are not comparable: their evaluation.reading is "
            f"{' and '.join(readings)}; give the `dynframe eval` of one again with the other's, which rolls nothing out"
        )
    if differing:
        listed = "; ".join(f"{key}: {one.get(key)!r} and {two.get(key)!r}" for key in differing[:3])
        raise EvaluationError(
            f"{first.folder} and {other.folder} are not comparable ({listed}); evaluate both on the same "
            "examples, with the same rewards or metrics"
        )


def _reading(report: Mapping[str, Any]) -> str:
    return report.get("reading", STRICT)  # earlier versions knew no other


def _differences(first: Evaluation, other: Evaluation) -> dict[str, PairedDifference]:
    common = sorted(first.outcomes.keys() & other.outcomes.keys())
    pairs = [(first.outcomes[task_id], other.outcomes[task_id]) for task_id in common]
    found = {}
    for name in sorted(first.report["metrics"].keys() & other.report["metrics"].keys()):
        both = [(one, two) for one, two in pairs if name in one.metrics and name in two.metrics]
        if both:
            groups = [one.group for one, _ in both] if name in in_either(first.report["over_groups"]) else None
            unasked = first.report["metrics"][name]["n"] - len(both) if name in first.report.get("over_file", ()) else 0
            ones, twos = (
                [outcome.metrics[name] for outcome in side] + [0.0] * unasked for side in zip(*both, strict=True)
            )
            found[name] = compare_paired(ones, twos, groups)
    return found


def _cell(estimate: Mapping[str, Any] | None) -> str:
    if estimate is None:
        return "-"
    return f"{estimate['value']:.3f} ({interval_text(estimate)})"


def _difference_cell(paired: PairedDifference | None) -> str:
    if paired is None:
        return "no example in common"
    difference = paired.difference
    interval = interval_text(asdict(difference), number="+.3f")
    return f"{difference.value:+.3f} ({interval})\np {paired.p_value:.2g}, n {difference.n}"
