"""Intervals and paired tests, against plain loops and numbers worked out by hand."""

import itertools
import math
import random
from dataclasses import asdict
from statistics import fmean

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rl.evaluation.intervals import MIN_EXAMPLES, SIGN_PATTERNS, compare_paired, estimate_mean, interval_text

VALUES = st.lists(st.floats(0, 1, allow_nan=False, width=32), min_size=1, max_size=12)
GROUPED = st.lists(st.tuples(st.floats(0, 1, width=32), st.sampled_from("abc")), min_size=1, max_size=12)


def macro(values, groups):
    """Oracle: the mean over groups of the mean within each."""
    within = {}
    for value, group in zip(values, groups, strict=True):
        within.setdefault(group, []).append(value)
    return fmean(fmean(part) for part in within.values())


def test_a_mean_and_a_macro_average_by_hand():
    assert estimate_mean([1.0, 0.0, 1.0, 1.0]).value == 0.75
    # a: (1 + 0) / 2 = 0.5; b: 1 -> (0.5 + 1) / 2, though 2 of 3 are right
    assert estimate_mean([1.0, 0.0, 1.0], ["a", "a", "b"]).value == 0.75


@pytest.mark.parametrize(("right", "n"), [(40, 100), (0, 7), (2, 2), (1, 1)])
def test_the_interval_of_a_share_is_wilsons(right, n):
    p, z = right / n, 1.959964  # Wilson 1927: where the score test of a share no longer rejects it at 5 %
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    estimate = estimate_mean([1.0] * right + [0.0] * (n - right))
    assert (estimate.value, estimate.n) == (p, n)
    assert estimate.low == pytest.approx((centre - half) / (1 + z * z / n), abs=1e-6)
    assert estimate.high == pytest.approx((centre + half) / (1 + z * z / n), abs=1e-6)


def test_the_bootstrap_of_a_share_draws_what_the_binomial_says():
    # 40 of 100 right, half of them in each group: Binomial(100, 0.4) / 100, 2.5 % below 0.31 and above 0.50
    estimate = estimate_mean(([1.0] * 20 + [0.0] * 30) * 2, ["a"] * 50 + ["b"] * 50, resamples=20_000)
    assert estimate.low == pytest.approx(0.31, abs=0.0101) and estimate.high == pytest.approx(0.50, abs=0.0101)


def test_few_examples_are_said_to_be_too_few_in_place_of_an_interval():
    few, enough = estimate_mean([0.5, 1.0]), estimate_mean([0.5, 1.0] * (MIN_EXAMPLES // 2))
    assert few.too_few and not enough.too_few
    assert interval_text(asdict(few)) == "2 examples: too few for an interval"
    assert interval_text(asdict(enough)) == f"{enough.low:.3f} .. {enough.high:.3f}"
    of_0_3_0 = {"value": 0.5, "low": 0.5, "high": 0.5, "n": 2}  # said nothing of that
    assert interval_text(of_0_3_0) == "2 examples: too few for an interval"


def test_examples_are_drawn_within_their_groups():
    # two groups, each of equal values: whatever is drawn, the macro average is (1 + 0) / 2
    estimate = estimate_mean([1.0] * 5 + [0.0] * 50, ["short"] * 5 + ["long"] * 50)
    assert (estimate.value, estimate.low, estimate.high) == (0.5, 0.5, 0.5)


def bootstrap_in_loops(values, groups, resamples):
    """Oracle: percentile interval by Python's own generator."""
    draw, within = random.Random(1), {}
    for value, group in zip(values, groups, strict=True):
        within.setdefault(group, []).append(value)
    means = sorted(fmean(fmean(draw.choice(part) for _ in part) for part in within.values()) for _ in range(resamples))
    return means[int(0.025 * resamples)], means[int(0.975 * resamples) - 1]


def test_the_interval_agrees_with_a_bootstrap_in_plain_loops():
    values = [((7 * i) % 11) / 10 for i in range(40)]
    groups = ["ab"[i % 3 == 0] for i in range(40)]
    low, high = bootstrap_in_loops(values, groups, 4000)
    estimate = estimate_mean(values, groups, resamples=4000)
    assert estimate.low == pytest.approx(low, abs=0.01) and estimate.high == pytest.approx(high, abs=0.01)


def test_numbers_of_0_3_0_are_found_again():
    """Its own bootstrap and sign-flip test drew from the same generator in the same order."""
    first, second = ([((step * i + start) % 11) / 10 for i in range(40)] for step, start in ((7, 0), (5, 3)))
    groups = ["ab"[i % 3 == 0] for i in range(40)]
    plain, macro_mean = estimate_mean(first), estimate_mean(first, groups)
    assert (plain.low, plain.high) == pytest.approx((0.4075, 0.6025), abs=1e-12)
    assert (macro_mean.low, macro_mean.high) == pytest.approx((0.39807005494505493, 0.6189629120879121), abs=1e-12)
    compared = compare_paired(first[:12], second[:12], groups[:12])  # all patterns of signs
    assert (compared.difference.low, compared.difference.high) == pytest.approx((-0.30640625, 0.18765625), abs=1e-12)
    assert compared.p_value == 0.7529296875
    assert compare_paired(first, second, groups).p_value == pytest.approx(0.6829, abs=0.01)  # of 10,000 drawn


@given(GROUPED)
@settings(max_examples=50, deadline=None)
def test_a_value_lies_in_its_interval_and_within_the_data(pairs):
    values, groups = zip(*pairs, strict=True)
    estimate = estimate_mean(values, groups, resamples=200)
    assert estimate.value == pytest.approx(macro(values, groups), abs=1e-12)
    bounds = (0, 1) if set(values) <= {0, 1} else (min(values) - 1e-9, max(values) + 1e-9)  # a share: Wilson's
    assert bounds[0] <= estimate.low <= estimate.value <= estimate.high <= bounds[1]
    assert estimate == estimate_mean(values, groups, resamples=200)  # the same every time


@given(VALUES)
@settings(max_examples=30, deadline=None)
def test_one_group_is_a_plain_mean(values):
    assert estimate_mean(values, ["all"] * len(values), resamples=100) == estimate_mean(values, resamples=100)


def test_many_examples_are_resampled_in_pieces():
    values = [float(i % 2) for i in range(30_000)]
    estimate = estimate_mean(values, ["ab"[i < 15_000] for i in range(30_000)], resamples=300)  # standard error 0.0029
    assert estimate.low == pytest.approx(0.5 - 1.96 * 0.0029, abs=0.001)
    assert estimate.high == pytest.approx(0.5 + 1.96 * 0.0029, abs=0.001)


@pytest.mark.parametrize(
    ("values", "groups", "message"),
    [([], None, "no values"), ([1.0, math.nan], None, "finite"), ([1.0], ["a", "b"], "1 values, but 2 groups")],
)
def test_what_cannot_be_averaged_is_refused(values, groups, message):
    with pytest.raises(ValueError, match=message):
        estimate_mean(values, groups)


def sign_flips_in_loops(shares):
    """Oracle: every pattern of signs."""
    observed = abs(sum(shares))
    sums = [abs(sum(s * x for s, x in zip(signs, shares, strict=True)))
            for signs in itertools.product((1, -1), repeat=len(shares))]  # fmt: skip
    return fmean(total >= observed - 1e-12 for total in sums)


TIED = [(0, 0, "b"), (0, 1, "a"), (0, 1, "b"), (0, 2, "b"), (0, 3, "a"), (1, 0, "b"), (2, 0, "b"), (4, 0, "a")]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.sampled_from("ab")), min_size=1, max_size=9))
@example(TIED)  # the difference is 0 on paper, and 1e-17 in floats
@settings(max_examples=50, deadline=None)
def test_the_p_value_counts_every_pattern_of_signs(rows):
    first, second, groups = ([row[i] for row in rows] for i in range(3))
    sizes = {group: groups.count(group) for group in groups}
    shares = [(b - a) / (sizes[g] * len(sizes)) for a, b, g in rows]
    compared = compare_paired(first, second, groups)
    assert compared.p_value == pytest.approx(sign_flips_in_loops(shares))
    assert compared.difference.value == pytest.approx(macro(second, groups) - macro(first, groups), abs=1e-12)


def test_right_and_wrong_answers_give_mcnemars_exact_p():
    # 7 examples got better, 1 worse, 20 stayed: P(at most 1 of 8 coins) * 2 = 2 * (1 + 8) / 256
    first = [0.0] * 7 + [1.0] * 1 + [1.0] * 20
    second = [1.0] * 7 + [0.0] * 1 + [1.0] * 20
    assert compare_paired(first, second).p_value == pytest.approx(18 / 256)


def test_drawn_patterns_come_close_to_the_exact_p():
    # 15 better, 5 worse of 20: 2 * P(at most 5 of 20 coins) = 2 * 21700 / 2^20 = 0.0414
    first, second = [0.0] * 15 + [1.0] * 5, [1.0] * 15 + [0.0] * 5
    assert compare_paired(first, second).p_value == pytest.approx(0.0414, abs=0.005)


def test_equal_runs_are_no_evidence_and_the_smallest_p_is_bounded_by_the_patterns_drawn():
    assert compare_paired([0.3, 0.7], [0.3, 0.7]).p_value == 1.0
    assert compare_paired([0.0] * 200, [1.0] * 200).p_value == pytest.approx(2 / (1 + SIGN_PATTERNS))


def test_swapping_the_runs_turns_the_sign_and_keeps_the_evidence():
    first, second = [0.1, 0.5, 0.9, 0.2], [0.4, 0.5, 0.8, 0.9]
    there, back = compare_paired(first, second), compare_paired(second, first)
    assert there.p_value == back.p_value
    assert there.difference.value == pytest.approx(-back.difference.value)
    assert there.difference.low == pytest.approx(-back.difference.high, abs=0.02)


def test_runs_of_different_length_are_not_paired():
    with pytest.raises(ValueError, match="got 1 and 2"):
        compare_paired([1.0], [1.0, 0.0])
