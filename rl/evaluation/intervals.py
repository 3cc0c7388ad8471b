"""How sure a mean is, and whether two runs differ: bootstrap intervals and paired tests over examples.

Legend: n examples (sorted by whoever calls, so that the same examples give the same interval) · R resamples or sign
patterns · groups: a question type, a length of video.

Everything is a mean over groups of the mean within each; without groups there is one. Intervals are percentile
bootstraps that draw examples within their groups. They say how much a score owes to the choice of examples, not to the
policy's training seed. With a handful of examples, or where all are equal, they are too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95  # of the intervals
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


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Second run minus first on the examples both have, and how often chance alone gives as much."""

    difference: Estimate
    p_value: float  # two-sided, of the sign-flip test; not corrected for looking at several metrics


def estimate_mean(
    values_n: Sequence[float], groups_n: Sequence[str] | None = None, *, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """The mean and its bootstrap interval; of a macro average if groups are given.

    Args:
        values_n: one number per example.
        groups_n: the group of each example; None: all are one.
    Raises:
        ValueError: no values, a value that is not finite, or groups of another length.
    """
    parts = _by_group(values_n, groups_n)
    means_R = np.zeros(resamples)
    random = np.random.default_rng(seed)
    for part in parts:
        means_R += _resampled_means(part, random, resamples) / len(parts)
    low, high = np.quantile(means_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    value = math.fsum(math.fsum(part) / len(part) for part in parts) / len(parts)
    return Estimate(value, float(min(low, value)), float(max(high, value)), len(values_n))


def compare_paired(
    first_n: Sequence[float], second_n: Sequence[float], groups_n: Sequence[str] | None = None, *, seed: int = 0
) -> PairedDifference:
    """Whether a second run differs from a first, example by example (second minus first).

    The interval resamples examples. The p-value is of the sign-flip permutation test: were the runs alike, the
    difference of each example would be as likely the other way round. Up to 14 differing examples every pattern is
    tried (for right and wrong answers that is McNemar's exact test); beyond that 10,000 are drawn, and the smallest p
    is 1/10,001.

    Raises:
        ValueError: as `estimate_mean`; or runs of different length.
    """
    if len(first_n) != len(second_n):
        raise ValueError(f"paired values must be as many, got {len(first_n)} and {len(second_n)}")
    differences_n = [second - first for first, second in zip(first_n, second_n, strict=True)]
    parts = _by_group(differences_n, groups_n)
    shares = np.concatenate([part / (len(part) * len(parts)) for part in parts])  # of each example in the difference
    return PairedDifference(estimate_mean(differences_n, groups_n, seed=seed), _sign_flip_p(shares, seed))


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


def _resampled_means(values_n: np.ndarray, random: np.random.Generator, resamples: int) -> np.ndarray:
    """Means of n values drawn with replacement, R times."""
    n = len(values_n)
    rows = max(1, BLOCK // n)
    blocks = [
        values_n[random.integers(0, n, size=(min(rows, resamples - done), n))].mean(axis=1)
        for done in range(0, resamples, rows)
    ]
    return np.concatenate(blocks)


def _sign_flip_p(shares_n: np.ndarray, seed: int) -> float:
    """Two-sided: the share of sign patterns whose sum is at least as far from 0 as the observed one."""
    shares_n = shares_n[shares_n != 0]  # an example without a difference is the same either way round
    n = len(shares_n)
    reached = abs(shares_n.sum()) - 1e-12 * np.abs(shares_n).sum()  # sums in another order differ by rounding
    if n <= EXACT_UP_TO:
        patterns = np.arange(2**n)[:, None] >> np.arange(n)
        return float((np.abs((1 - 2 * (patterns & 1)) @ shares_n) >= reached).mean())
    random, as_far, rows = np.random.default_rng(seed), 0, max(1, BLOCK // n)
    for done in range(0, SIGN_PATTERNS, rows):
        signs = 1 - 2 * random.integers(0, 2, size=(min(rows, SIGN_PATTERNS - done), n), dtype=np.int8)
        as_far += int((np.abs(signs @ shares_n) >= reached).sum())
    return (1 + as_far) / (1 + SIGN_PATTERNS)  # the observed pattern is one of them
