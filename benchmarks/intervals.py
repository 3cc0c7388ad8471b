"""Means over seeds and Student's 95 % interval of them, and how tables show them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from scipy import stats


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean, and half of its interval."""

    mean: float
    half: float  # nan for a single seed

    def __str__(self) -> str:
        digits = 1 if abs(self.mean) >= 100 else 2 if abs(self.mean) >= 10 else 3
        around = "" if math.isnan(self.half) else f" ± {self.half:.{digits}f}"
        return f"{self.mean:.{digits}f}{around}"

    @property
    def excludes_zero(self) -> bool:
        """The sign is certain at 95 %."""
        return abs(self.mean) > self.half


def interval(values_S: Sequence[float]) -> Interval:
    """Of a number that each seed gave once."""
    if len(values_S) < 2:
        return Interval(fmean(values_S), math.nan)
    return Interval(fmean(values_S), float(stats.t.ppf(0.975, len(values_S) - 1) * stats.sem(values_S)))


def signed(found: Interval | None) -> str:
    """With its sign; bold where that is certain, empty where there is nothing."""
    if found is None:
        return ""
    text = f"{'+' if found.mean >= 0 else ''}{found}"
    return f"**{text}**" if found.excludes_zero else text
