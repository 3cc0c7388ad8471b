"""The evaluations of a run for its report: one row per metric of eval/*/metrics.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl.report.run_files import Broken, finite, first_line, read_object


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """One metric of one benchmark."""

    benchmark: str  # the evaluation's name, and its benchmark's where they differ
    metric: str
    value: float
    low: float | None  # 95 % interval; None: not given, or of too few examples
    high: float | None
    count: int | None  # examples
    too_few: bool = False  # for an interval
    printed: str | None = None  # the digits of the authors' script, if it prints this metric
    comparable: bool | None = None  # with published numbers; None: nothing is known of those
    why_not: str | None = None


def read_evaluations(
    run: Path, wanted: Callable[[Mapping[str, Any]], bool] = lambda report: True
) -> tuple[list[EvaluationRow], list[Broken]]:
    """eval/*/metrics.json: {benchmark, metrics: {name: {value, low, high, n}}, published: {name: {comparable, …}}}.

    Args:
        wanted: whether a report is read; all are by default.
    """
    rows, broken = [], []
    for path in sorted((run / "eval").glob("*/metrics.json")):
        place = path.relative_to(run).as_posix()
        try:
            report = read_object(path, place)
            if isinstance(report, Broken):
                broken.append(report)
                continue
            if not wanted(report):
                continue
            benchmark, name = str(report.get("benchmark", path.parent.name)), path.parent.name
            name = (
                name if name == benchmark else f"{name} ({benchmark})"
            )  # one benchmark may be evaluated in several ways
            published = report.get("published", {})  # absent: written by 0.4.0
            rows += [
                _evaluation_row(name, metric, entry, published.get(metric, {}))
                for metric, entry in report["metrics"].items()
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            broken.append(Broken(place, f"is not the report of an evaluation ({first_line(error)})"))
    return rows, broken


def _evaluation_row(benchmark: str, metric: str, entry: Any, published: Mapping[str, Any]) -> EvaluationRow:
    entry = entry if isinstance(entry, dict) else {"value": entry}
    value, low, high, count = (finite(entry.get(key)) for key in ("value", "low", "high", "n"))
    if value is None:
        raise ValueError(f"{metric} has no value")
    too_few = entry.get("too_few") is True
    interval = (None, None) if too_few else (low, high)
    printed, comparable, why_not = (published.get(key) for key in ("printed", "comparable", "why_not"))
    return EvaluationRow(
        benchmark,
        str(metric),
        value,
        *interval,
        None if count is None else int(count),
        too_few,
        None if printed is None else str(printed),
        comparable if isinstance(comparable, bool) else None,
        None if why_not is None else str(why_not),
    )
