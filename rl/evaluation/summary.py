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
from rl.evaluation.published import published_numbers
from rl.evaluation.readings import LENIENT, as_read, in_either, is_detail
from rl.evaluation.suite import EvaluationSuite
from rl.run.prepare.built_once import fingerprint

WARNINGS = {  # counts to warn of
    "rejected": "rows of the annotations left out (rejected.jsonl)",
    "left_out": "windows of the annotations left out, of questions that have others",
    "missing": "without a prediction: the video could not be read, or left no room to answer",
    "truncated": "ran out of tokens",
    "unparsed": "whose answer or window could not be read",
    "failed": "whose reward could not be computed",
    "unanswerable": "whose annotated answer is none of the options: every prediction is wrong",
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
    summary = summarise_outcomes(
        read, over_groups=in_either(suite.over_groups), over_file=suite.over_file, unasked=suite.unasked
    )
    unanswerable = sum(not example.answerable for example in suite.examples)
    return {
        "fingerprint": fingerprint(identity),
        "benchmark": suite.name,
        "source": suite.source,
        "headline": suite.headline,
        "over_groups": list(suite.over_groups),
        "over_file": list(suite.over_file),
        "reading": reading,
        "split": suite.published.split_of(len(outcomes)),
        "retrieval": config.retrieval.max_calls > 0,
        "limit": config.evaluation.limit,
        **summary,
        "counts": {
            **summary["counts"],
            "rejected": len(suite.rejected),
            "left_out": len(suite.left_out),
            "unanswerable": unanswerable,
        },
        "published": published_numbers(suite, read),
        "policy": dict(policy),
        "identity": dict(identity),
    }


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """The table: metrics with their intervals, the headline first; then what the policy did; then warnings.

    Of a benchmark it says for each metric what the authors' script prints, and whether it may stand beside published
    numbers; the reasons why not stand below.
    """
    counts, headline, published = report["counts"], report["headline"], report["published"]
    reasons = _Reasons()
    speed = f", {report['tasks_per_s']:.1f} per second" if report["tasks_per_s"] else ""
    off = "" if report["retrieval"] else ", retrieval off"
    leniently = ", answers read leniently" if report["reading"] == LENIENT else ""
    name = f"{report['benchmark']} {report['split']}".strip()
    table = Table(
        title=f"{escape(name)}: {counts['examples']} examples{speed}{off}{leniently}",
        box=None,
        pad_edge=False,
    )
    table.add_column("", overflow="fold")
    for heading in ("value", "95 % interval", "n", *(("authors print", "comparable") if published else ())):
        table.add_column(heading, justify="right", no_wrap=heading != "95 % interval")

    def add(label: str, estimate: Mapping[str, Any], metric: str = "") -> None:
        number = published.get(metric, {"printed": None, "comparable": True, "why_not": None})
        shown = (number["printed"] or "", reasons.mark(number) if metric else "") if published else ()
        table.add_row(label, f"{estimate['value']:.3f}", interval_text(estimate), str(estimate["n"]), *shown)

    leading = [name for name in in_either([headline]) if name in report["metrics"]]
    for name in leading:
        add(f"[bold]{escape(name)}[/]", report["metrics"][name], name)
    for group, metrics in report["groups"].items():
        if headline in metrics:
            add(f"  {escape(group)}", metrics[headline])
    for name, estimate in report["metrics"].items():
        if name not in leading and not is_detail(name):
            add(escape(name), estimate, name)
    for name, estimate in report["behaviour"].items():
        add(f"[dim]{name}[/]", estimate)
    console.print(table)
    for line in reasons.lines():
        console.print(line, markup=False, highlight=False)
    warnings = [f"{counts[name]} {meaning}" for name, meaning in WARNINGS.items() if counts[name]]
    if warnings:
        console.print(f"[yellow]note:[/] {'; '.join(warnings)}", highlight=False)


class _Reasons:
    """Why numbers are not comparable, each reason once, under a letter."""

    def __init__(self) -> None:
        self._letters: dict[str, str] = {}

    def mark(self, number: Mapping[str, Any]) -> str:
        """Either "yes", or "no" with the letter of the reason."""
        if number["comparable"]:
            return "yes"
        return f"no ({self._letters.setdefault(number['why_not'], chr(ord('a') + len(self._letters)))})"

    def lines(self) -> list[str]:
        """The legend."""
        return [f"({letter}) not comparable with published numbers: {why}" for why, letter in self._letters.items()]
