"""Which numbers may stand beside published ones, and how the authors' scripts round."""

import pytest

from envs.benchmarks.benchmark import Example, Prediction
from envs.benchmarks.published import (
    OURS,
    Published,
    fraction,
    full_percent,
    percent,
    percent_of_mean,
    percent_over_groups,
    rounded_fraction,
)
from envs.benchmarks.registry import BUILTIN, resolve
from rl.trajectory import AnswerKind, TimeSpan, VideoTask

SIXTEENTH = [1.0] + [0.0] * 15
OF_2000 = [1.0] * 127 + [0.0] * 1873


@pytest.mark.parametrize(
    ("printed", "values", "digits"),
    [
        (percent(1), [1.0, 0.0, 0.0], "33.3"),
        (percent(1), [1.0, 1.0], "100.0"),
        (percent(1), SIXTEENTH, "6.2"),  # 6.25 is a tie: to the even digit
        (percent(1), OF_2000, "6.3"),  # 6.35 lies below the tie as a double, as 100 * 127 / 2000 does
        (percent_of_mean(1), OF_2000, "6.3"),
        (percent_of_mean(2), [0.5, 0.25], "37.50"),
        (percent_of_mean(2, trimmed=True), [0.5, 0.25], "37.5"),
        (percent_of_mean(2, trimmed=True), [1.0], "100.0"),
        (fraction, [1.0, 0.0, 0.0], "0.3333333333333333"),
        (fraction, [0.0], "0.0"),
        (rounded_fraction(5), [1.0, 0.0, 0.0], "0.33333"),
        (rounded_fraction(5), [1.0, 0.25], "0.625"),
        (full_percent, [1.0, 0.0, 0.0], "33.33333333333333"),
    ],
)
def test_digits_are_rounded_as_the_script_rounds_them(printed, values, digits):
    assert printed(values, [""] * len(values)) == digits


def test_a_mean_over_groups_is_taken_in_the_scripts_order_over_those_there_are():
    printed = percent_over_groups(("count", "ego", "needle"))
    assert printed([1.0, 0.0, 1.0], ["ego", "ego", "count"]) == "75.0"
    assert printed([1.0], ["needle"]) == "100.0"
    third, three_sevenths = [1.0, 0.0, 0.0], [1.0] * 3 + [0.0] * 4
    groups = ["z"] * 3 + ["y"] * 3 + ["x"] * 7
    last_digit = {
        order: percent_over_groups(order)([*third, *third, *three_sevenths], groups) for order in ("zyx", "xyz")
    }
    assert last_digit == {"zyx": "36.507936507936506", "xyz": "36.5079365079365"}


def test_the_longest_name_says_whether_a_metric_is_comparable():
    published = Published(
        why_not={"official/": "", "official/accuracy": "of the whole file", "accuracy/": "by length"},
        printed={"official/": fraction},
    )
    assert published.why_not_comparable("official/accuracy") == "of the whole file"
    assert published.why_not_comparable("official/accuracy/short") == ""
    assert published.why_not_comparable("accuracy/short") == "by length"
    assert published.why_not_comparable("accuracy") == published.why_not_comparable("unparsed") == OURS
    assert published.digits("official/accuracy/short", [1.0], [""]) == "1.0"
    assert published.digits("accuracy", [1.0], [""]) is None


def test_a_split_is_known_by_the_number_of_its_questions():
    published = Published(splits={"test": 5553, "val": 3358})
    assert [published.split_of(n) for n in (5553, 3358, 5552, 0)] == ["test", "val", "", ""]


def metrics_of(name):
    """All that a benchmark says of an example with a right answer."""
    span = name in ("charades_sta", "activitynet_mr", "qvhighlights")
    kind, answer = (AnswerKind.SPAN, "0 - 1") if span else (AnswerKind.LETTER, "A")
    task = VideoTask("t", "/clip.mp4", "?", answer, kind)
    example = Example(task, (TimeSpan(0, 1),), "short", ("red", "blue"))
    return resolve(name).score(example, Prediction(answer, (TimeSpan(0, 1),)))


@pytest.mark.parametrize("name", BUILTIN)
def test_every_number_of_every_benchmark_is_comparable_or_says_why_not(name):
    benchmark, metrics = resolve(name), metrics_of(name)
    reasons = {metric: benchmark.published.why_not_comparable(metric) for metric in metrics}
    ours = {metric for metric, why_not in reasons.items() if why_not == OURS}
    assert ours == {metric for metric in metrics if metric.startswith("unparsed")}
    assert benchmark.published.splits
    assert "" in reasons.values() or name == "favor_bench"


@pytest.mark.parametrize("name", BUILTIN)
def test_what_a_script_prints_is_there_for_every_official_number(name):
    published, metrics = resolve(name).published, metrics_of(name)
    printed = {metric for metric in metrics if published.digits(metric, [1.0], ["plotQA"]) is not None}
    assert {metric for metric in metrics if metric.startswith(("official/", "predicted/"))} <= printed
    assert set(resolve(name).over_file) <= printed
