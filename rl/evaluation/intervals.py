"""How sure a mean is, and whether two runs differ: intervals and paired tests over examples, by scipy.stats.

Legend: n examples (sorted by the caller, so that the same examples give the same interval) · R resamples or sign
patterns · groups: a question type, a length of video.

Everything is a mean over groups of the mean within each; without groups there is one. The interval of a share (values
of 0 and 1, one group) is Wilson's; all others are percentile bootstraps that draw examples within their groups. They
say how much a score owes to the choice of examples, not to the policy's training seed. Below MIN_EXAMPLES they are
marked as of too few examples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.95  # of the intervals
MIN_EXAMPLES = 10  # for an interval: a bootstrap of fewer is too narrow, and Wilson's says nearly nothing
RESAMPLES = 2_000
SIGN_PATTERNS = 10_000  # drawn where they cannot all be tried
EXACT_UP_TO = 14  # differences other than 0 whose 2^n sign patterns are all tried
BLOCK = 4_000_000  # numbers held at a time


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % interval, over n examples."""

    value: float
    low: float
    high: float
    n: int
    too_few: bool  # for the interval to mean anything


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Second run minus first on the examples both have, and how often chance alone gives as much."""

    difference: Estimate
    p_value: float  # two-sided, of the sign-flip test; not corrected for looking at several metrics


def estimate_mean(
    values_n: Sequence[float], groups_n: Sequence[str] | None = None, *, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """The mean and its interval; of a macro average if groups are given.

    Args:
        values_n: one number per example.
        groups_n: the group of each example; None: all are one.
    Raises:
        ValueError: no values, a value that is not finite, or groups of another length.
    """
    parts = _by_group(values_n, groups_n)
    is_share = len(parts) == 1 and np.isin(parts[0], (0.0, 1.0)).all()
    return _estimate(parts, _wilson(parts[0]) if is_share else _bootstrap(parts, seed, resamples))


def interval_text(estimate: Mapping[str, Any], number: str = ".3f") -> str:
    """The interval of an Estimate as it lies in metrics.json, or that there are too few examples for one."""
    if estimate.get("too_few", estimate["n"] < MIN_EXAMPLES):  # absent: written by 0.3.0
        return f"{estimate['n']} examples: too few for an interval"
    return f"{estimate['low']:{number}} .. {estimate['high']:{number}}"


def compare_paired(
    first_n: Sequence[float], second_n: Sequence[float], groups_n: Sequence[str] | None = None, *, seed: int = 0
) -> PairedDifference:
    """Whether a second run differs from a first, example by example (second minus first).

    The interval resamples examples. The p-value is of the sign-flip permutation test: were the runs alike, the
    difference of each example would be as likely the other way round. Up to 14 differing examples every pattern is
    tried (for right and wrong answers that is McNemar's exact test); beyond that 10,000 are drawn, and the smallest p
    is 2/10,001.

    Raises:
        ValueError: as `estimate_mean`; or runs of different length.
    """
    if len(first_n) != len(second_n):
        raise ValueError(f"paired values must be as many, got {len(first_n)} and {len(second_n)}")
    differences_n = [second - first for first, second in zip(first_n, second_n, strict=True)]
    parts = _by_group(differences_n, groups_n)
    shares = np.concatenate([part / (len(part) * len(parts)) for part in parts])  # of each example in the difference
    difference = _estimate(parts, _bootstrap(parts, seed, RESAMPLES))
    return PairedDifference(difference, _sign_flip_p(shares, seed))


def _by_group(values_n: Sequence[float], groups_n: Sequence[str] | None) -> list[np.ndarray]:
    """Values of each group, groups in alphabetical order."""
    values = np.asarray(values_n, dtype=np.float64)
    if not len(values):
        raise ValueError("there are no values to average")
    if not np.isfinite(values).all():
        raise ValueError("every value must be finite; leave out what has none")
    if groups_n is None:
        return [values]
    if len(groups_n) != len(values):
        raise ValueError(f"{len(values)} values, but {len(groups_n)} groups")
    groups = np.asarray(groups_n)
    return [values[groups == group] for group in sorted(set(groups_n))]


def _estimate(parts: Sequence[np.ndarray], interval: tuple[float, float]) -> Estimate:
    value = math.fsum(math.fsum(part) / len(part) for part in parts) / len(parts)
    n = sum(map(len, parts))
    return Estimate(value, min(interval[0], value), max(interval[1], value), n, n < MIN_EXAMPLES)


def _wilson(values_n: np.ndarray) -> tuple[float, float]:
    interval = stats.binomtest(int(values_n.sum()), len(values_n)).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def _bootstrap(parts: Sequence[np.ndarray], seed: int, resamples: int) -> tuple[float, float]:
    """Percentile interval of the mean over groups of the mean within each, groups resampled independently."""
    several = [part for part in parts if len(part) > 1]
    fixed = sum(float(part[0]) for part in parts if len(part) == 1)  # drawing from one example changes nothing
    if not several:
        return fixed / len(parts), fixed / len(parts)

    def macro_mean(*resampled: np.ndarray, axis: int) -> np.ndarray:
        return (sum(part.mean(axis=axis) for part in resampled) + fixed) / len(parts)

    found = stats.bootstrap(
        several,
        macro_mean,
        n_resamples=resamples,
        batch=max(1, BLOCK // max(map(len, several))),
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _sign_flip_p(shares_n: np.ndarray, seed: int) -> float:
    """Two-sided p-value of the sum, had the sign of each share been drawn by a coin."""
    shares_n = shares_n[shares_n != 0]  # an example without a difference is the same either way round
    n = len(shares_n)
    if n <= 1:
        return 1.0
    shares_n = shares_n / np.abs(shares_n).sum()
    if n <= EXACT_UP_TO:
        return float(stats.permutation_test([shares_n], _sum, permutation_type="samples", n_resamples=np.inf).pvalue)
    random = np.random.default_rng(seed)

    def flipped(size: tuple[int, ...]) -> np.ndarray:
        return shares_n * (1 - 2 * random.integers(0, 2, size=size, dtype=np.int8))

    batch = max(1, BLOCK // n)
    return float(stats.monte_carlo_test(shares_n, flipped, _sum, n_resamples=SIGN_PATTERNS, batch=batch).pvalue)


def _sum(values: np.ndarray, axis: int) -> np.ndarray:
    """Of shares whose sizes add up to 1, rounded: sums that are equal on paper must be equal here to count as ties."""
    return values.sum(axis=axis).round(12)
