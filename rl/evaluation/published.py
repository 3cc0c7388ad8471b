"""An evaluation's numbers beside published ones: which may stand there, and the digits that authors' scripts print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rl.evaluation.evaluate import metric_values
from rl.evaluation.predictions import Outcome
from rl.evaluation.readings import by_either_reading
from rl.evaluation.suite import EvaluationSuite


def published_numbers(suite: EvaluationSuite, outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """By metric: whether it is comparable, why not, and what the authors' script prints for these predictions.

    Nothing for the held-out tasks of a run, and for a benchmark that says nothing about published numbers.
    """
    if not suite.published.why_not:
        return {}
    of_this_run = _why_not_this_run(suite, outcomes)
    numbers = {}
    for name, (values_n, groups_n) in metric_values(outcomes, over_file=suite.over_file, unasked=suite.unasked).items():
        metric = by_either_reading(name)
        why_not = suite.published.why_not_comparable(metric) or of_this_run
        printed = suite.published.digits(metric, values_n, groups_n)
        numbers[name] = {"comparable": not why_not, "why_not": why_not or None, "printed": printed}
    return numbers


def _why_not_this_run(suite: EvaluationSuite, outcomes: Sequence[Outcome]) -> str:
    """What keeps every number of this evaluation from being comparable; "" if nothing does."""
    asked, splits = len(outcomes), suite.published.splits
    missing = sum(outcome.missing is not None for outcome in outcomes)
    reasons = []
    if splits and not suite.published.split_of(asked):
        listed = ", ".join(f"{size:,} of {name}" for name, size in splits.items())
        reasons.append(f"{asked:,} questions were asked; published are numbers over the {listed}")
    if missing:
        reasons.append(f"{missing:,} without a prediction")
    return "; ".join(reasons)
