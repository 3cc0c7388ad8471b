"""Which of a benchmark's numbers may stand beside published ones, and the digits that its authors' script prints.

Legend: n examples that a metric applies to, in the order of the benchmark.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

OURS = "a number of this project's own"
Printed = Callable[[Sequence[float], Sequence[str]], str]  # (values_n, groups_n) -> digits, as the script rounds them


@dataclass(frozen=True, slots=True)
class Published:
    """What is published of a benchmark, and by which of our numbers it is matched.

    A name that ends in "/" stands for every metric under it that is not named itself.
    """

    why_not: Mapping[str, str] = field(default_factory=dict)  # metric -> "" if comparable, or the reason
    splits: Mapping[str, int] = field(default_factory=dict)  # -> questions in it, those with withheld answers not
    printed: Mapping[str, Printed] = field(default_factory=dict)  # of metrics that the authors' script prints

    def why_not_comparable(self, metric: str) -> str:
        """The reason, as far as it lies in how the metric is defined; "" if there is none."""
        named = _named(self.why_not, metric)
        return OURS if named is None else self.why_not[named]

    def digits(self, metric: str, values_n: Sequence[float], groups_n: Sequence[str]) -> str | None:
        """The metric as the script prints it; None if it does not."""
        named = _named(self.printed, metric)
        return None if named is None else self.printed[named](values_n, groups_n)

    def split_of(self, questions: int) -> str:
        """The split that has as many questions; "" if none has."""
        return next((name for name, size in self.splits.items() if size == questions), "")


def percent(decimals: int) -> Printed:
    """100 * right / n, with so many decimals."""
    return lambda values_n, _: f"{100 * sum(values_n) / len(values_n):.{decimals}f}"


def percent_of_mean(decimals: int, *, trimmed: bool = False) -> Printed:
    """right / n * 100 (which may round otherwise than 100 * right / n); trimmed: a rounded number prints "45.0"."""

    def printed(values_n: Sequence[float], _: Sequence[str]) -> str:
        shown = f"{sum(values_n) / len(values_n) * 100:.{decimals}f}"
        return repr(float(shown)) if trimmed else shown

    return printed


def fraction(values_n: Sequence[float], _: Sequence[str]) -> str:
    """right / n, with every digit that it has."""
    return repr(sum(values_n) / len(values_n))


def rounded_fraction(decimals: int) -> Printed:
    """right / n, rounded."""
    return lambda values_n, _: repr(round(sum(values_n) / len(values_n), decimals))


def percent_over_groups(order: Sequence[str]) -> Printed:
    """The mean over groups, taken in this order, of 100 times the accuracy within each; every digit."""

    def printed(values_n: Sequence[float], groups_n: Sequence[str]) -> str:
        of_group = {group: [v for v, of in zip(values_n, groups_n, strict=True) if of == group] for group in order}
        percents = [sum(values) / len(values) * 100 for values in of_group.values() if values]
        return repr(_added(percents) / len(percents))

    return printed


def full_percent(values_n: Sequence[float], _: Sequence[str]) -> str:
    """right / n * 100, with every digit that it has."""
    return repr(sum(values_n) / len(values_n) * 100)


def _named(names: Mapping[str, object], metric: str) -> str | None:
    """The key that stands for a metric: its own name, or the longest prefix."""
    if metric in names:
        return metric
    return max((name for name in names if name.endswith("/") and metric.startswith(name)), key=len, default=None)


def _added(values: Sequence[float]) -> float:
    """The sum one by one, as the scripts take it: `sum` compensates for rounding since Python 3.12."""
    total = 0.0
    for value in values:
        total += value
    return total
