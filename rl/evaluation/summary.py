"""The result of an evaluation: metrics.json, and the table that is printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rl.config.run import RunConfig
from rl.evaluation.evaluate import summarise_outcomes
from rl.evaluation.intervals import interval_text
from rl.evaluation.predictions import Outcome
from rl.evaluation.readings import LENIENT, as_read, in_either, is_detail
from rl.evaluation.suite import EvaluationSuite
from rl.run.prepare.built_once import fingerprint

WARNINGS = {  # counts to warn of
    "rejected": "rows of the annotations left out (rejected.jsonl)",
    "missing": "without a prediction: the video could not be read, or left no room to answer",
    "truncated": "ran out of tokens",
    "unparsed": "whose answer or window could not be read",
    "failed": "whose reward could not be computed",
}


def make_report(
    config: RunConfig,
    suite: EvaluationSuite,
    outcomes: Sequence[Outcome],
    identity: Mapping[str, Any],
    policy: Mapping[str, Any],
) -> dict[str, Any]:
    """What metrics.json holds."""
    reading = config.evaluation.reading
    read = [replace(outcome, metrics=as_read(outcome.metrics, reading)) for outcome in outcomes]
    summary = summarise_outcomes(read, over_groups=in_either(suite.over_groups))
    return {
        "fingerprint": fingerprint(identity),
        "benchmark": suite.name,
        "source": suite.source,
        "headline": suite.headline,
        "over_groups": list(suite.over_groups),
        "reading": reading,
        "retrieval": config.retrieval.max_calls > 0,
        "limit": config.evaluation.limit,
        **summary,
        "counts": {**summary["counts"], "rejected": len(suite.rejected)},
        "policy": dict(policy),
        "identity": dict(identity),
    }


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """The table: metrics with their intervals, the headline first; then what the policy did; then warnings."""
    counts, headline = report["counts"], report["headline"]
    speed = f", {report['tasks_per_s']:.1f} per second" if report["tasks_per_s"] else ""
    off = "" if report["retrieval"] else ", retrieval off"
    leniently = ", answers read leniently" if report["reading"] == LENIENT else ""
    table = Table(
        title=f"{escape(report['benchmark'])}: {counts['examples']} examples{speed}{off}{leniently}",
        box=None,
        pad_edge=False,
    )
    for heading in ("", "value", "95 % interval", "n"):
        table.add_column(heading, justify="left" if not heading else "right")

    def add(label: str, estimate: Mapping[str, Any]) -> None:
        table.add_row(label, f"{estimate['value']:.3f}", interval_text(estimate), str(estimate["n"]))

    leading = [name for name in in_either([headline]) if name in report["metrics"]]
    for name in leading:
        add(f"[bold]{escape(name)}[/]", report["metrics"][name])
    for group, metrics in report["groups"].items():
        if headline in metrics:
            add(f"  {escape(group)}", metrics[headline])
    for name, estimate in report["metrics"].items():
        if name not in leading and not is_detail(name):
            add(escape(name), estimate)
    for name, estimate in report["behaviour"].items():
        add(f"[dim]{name}[/]", estimate)
    console.print(table)
    warnings = [f"{counts[name]} {meaning}" for name, meaning in WARNINGS.items() if counts[name]]
    if warnings:
        console.print(f"[yellow]note:[/] {'; '.join(warnings)}", highlight=False)
