"""Evaluations side by side: paired on the examples both have, and only if they are comparable."""

import io
import json
from dataclasses import asdict

import pytest
from rich.console import Console

from rl.evaluation.compare import compare, load_evaluations, print_comparison
from rl.evaluation.evaluate import summarise_outcomes
from rl.evaluation.predictions import EvaluationError, Outcome, open_folder, write_json

SUITE = {"benchmark": "letters", "examples": "abcd", "retrieval.max_calls": 1}


def evaluation(folder, right, *, identity=SUITE, limit=0, over_groups=(), finished=True):
    """`right`: task id -> 1 if the answer was right; tasks named "l…" are of the group "long"."""
    outcomes = [
        Outcome(name, i, "long" if name[0] == "l" else "short", {"accuracy": float(value)}, "B", (), "B", "answered")
        for i, (name, value) in enumerate(right.items())
    ]
    with open_folder(folder, identity) as file:
        for outcome in outcomes:
            file.append(outcome)
    if finished:
        summary = summarise_outcomes(outcomes[: limit or None], over_groups=over_groups)
        report = {"benchmark": "letters", "headline": "accuracy", "over_groups": list(over_groups), "limit": limit}
        write_json(folder / "metrics.json", {**report, **summary, "identity": identity})
    return folder


@pytest.fixture
def two(tmp_path):
    """Two runs of four examples: the second got two more right, and one less."""
    one = evaluation(tmp_path / "one" / "eval" / "letters", {"a": 0, "b": 0, "c": 1, "d": 1})
    other = evaluation(tmp_path / "two" / "eval" / "letters", {"a": 1, "b": 1, "c": 0, "d": 1})
    return one, other


def test_the_difference_is_taken_example_by_example(two):
    comparison = compare(load_evaluations(two))
    (found,) = comparison.differences
    assert found["accuracy"].difference.value == 0.25 and found["accuracy"].difference.n == 4
    assert found["accuracy"].p_value == 1.0  # +1 +1 -1: every one of the 8 sign patterns sums to at least 1 in size
    assert [one.label for one in comparison.evaluations] == ["one", "two"]


def test_evaluations_that_are_read_differently_are_not_comparable(two):
    metrics = two[1] / "metrics.json"
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | {"reading": "lenient"}))
    with pytest.raises(EvaluationError, match=r"their evaluation\.reading is strict and lenient; give"):
        compare(load_evaluations(two))


@pytest.mark.parametrize("given", ["folders", "metrics files", "runs"])
def test_evaluations_are_found_by_folder_by_file_and_by_run(two, given):
    paths = {
        "folders": two,
        "metrics files": [folder / "metrics.json" for folder in two],
        "runs": [folder.parents[1] for folder in two],
    }[given]
    assert [one.folder for one in load_evaluations(paths)] == list(two)


def test_examples_that_only_one_run_has_are_left_out_of_the_difference(tmp_path):
    first = evaluation(tmp_path / "x" / "eval" / "l", {"a": 0, "b": 1, "c": 1, "d": 0}, limit=3)  # d is not counted
    second = evaluation(tmp_path / "y" / "eval" / "l", {"a": 1, "b": 1, "d": 1})
    (found,) = compare(load_evaluations([first, second])).differences
    assert found["accuracy"].difference.n == 2  # a and b
    assert found["accuracy"].difference.value == 0.5


def test_where_the_whole_file_counts_the_difference_is_of_the_whole_file(tmp_path):
    folders = []
    for run, right in (("x", (0, 1)), ("y", (1, 1))):
        folders.append(evaluation(tmp_path / run / "l", dict(zip("ab", right, strict=True))))
        report = json.loads((folders[-1] / "metrics.json").read_text())
        report["metrics"]["accuracy"]["n"] = 8  # six were not asked
        write_json(folders[-1] / "metrics.json", report | {"over_file": ["accuracy"]})
    (found,) = compare(load_evaluations(folders)).differences
    assert (found["accuracy"].difference.value, found["accuracy"].difference.n) == (1 / 8, 8)


def test_a_macro_average_differs_by_its_macro_average(tmp_path):
    # short: 0 of 3 -> 3 of 3 (+1); long: 1 of 1 -> 1 of 1 (0): half of it, not three quarters
    names = ("s1", "s2", "s3", "l1")
    first = evaluation(tmp_path / "x" / "l", dict(zip(names, (0, 0, 0, 1), strict=True)), over_groups=["accuracy"])
    second = evaluation(tmp_path / "y" / "l", dict.fromkeys(names, 1), over_groups=["accuracy"])
    (found,) = compare(load_evaluations([first, second])).differences
    assert found["accuracy"].difference.value == 0.5


@pytest.mark.parametrize(
    "other",
    [{"benchmark": "numbers"}, {"examples": "dcba"}, {"rewards.answer.weight": 0.5}],
)
def test_evaluations_of_other_examples_or_rewards_are_not_comparable(two, tmp_path, other):
    third = evaluation(tmp_path / "three", {"a": 1}, identity=SUITE | other)
    with pytest.raises(EvaluationError, match=f"not comparable .*{next(iter(other))}"):
        compare(load_evaluations([two[0], third]))


def test_a_baseline_without_retrieval_is_compared(two, tmp_path):
    baseline = evaluation(tmp_path / "no_looks", {"a": 0, "b": 0}, identity=SUITE | {"retrieval.max_calls": 0})
    assert compare(load_evaluations([two[0], baseline])).differences[0]["accuracy"].difference.n == 2


def test_an_evaluation_of_0_3_0_is_compared(two, tmp_path):
    older = evaluation(tmp_path / "older", {"a": 0, "b": 0})
    report = json.loads((older / "metrics.json").read_text())
    del report["metrics"]["accuracy"]["too_few"]
    report["identity"] |= {"video.v0.fps": 1.0}
    report["behaviour"] = {"looks": report["behaviour"].pop("granted_calls")}
    write_json(older / "metrics.json", report)
    comparison = compare(load_evaluations([older, two[0]]))
    assert comparison.differences[0]["accuracy"].difference.value == 0.0
    console = Console(file=io.StringIO(), width=200)
    print_comparison(comparison, console)
    assert "2 examples: too few for an interval" in console.file.getvalue()


def test_two_evaluations_of_one_run_have_labels_of_their_own(tmp_path):
    folders = [evaluation(tmp_path / "run" / "eval" / name, {"a": 1}) for name in ("letters", "no_looks")]
    assert [one.label for one in load_evaluations(folders)] == ["run/letters", "run/no_looks"]


def test_an_evaluation_meant_by_a_run_must_be_clear(two, tmp_path):
    runs = [folder.parents[1] for folder in two]
    for run in runs:
        evaluation(run / "eval" / "again", {"a": 1})
    with pytest.raises(EvaluationError, match=r"several evaluations in common .*--name"):
        load_evaluations(runs)
    assert [one.folder.name for one in load_evaluations(runs, "again")] == ["again", "again"]
    (tmp_path / "bare" / "eval").mkdir(parents=True)
    with pytest.raises(EvaluationError, match="no finished evaluation in common"):
        load_evaluations([tmp_path / "bare"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "metrics.json").unlink(), "not finished"),
        (lambda folder: (folder / "metrics.json").write_text("{}"), "no metrics of an evaluation: benchmark"),
        (lambda folder: (folder / "predictions.jsonl").unlink(), r"predictions\.jsonl: cannot be read"),
    ],
)
def test_an_evaluation_that_cannot_be_read_is_named(two, spoil, message):
    spoil(two[1])
    with pytest.raises(EvaluationError, match=message):
        load_evaluations(two)


def test_a_folder_that_is_no_evaluation_is_refused_with_what_to_give(tmp_path):
    with pytest.raises(EvaluationError, match="RUN/eval/NAME"):
        load_evaluations([tmp_path])


def test_the_table_shows_values_differences_and_evidence(two):
    console = Console(width=160, record=True, file=io.StringIO())
    print_comparison(compare(load_evaluations(two)), console)
    shown = console.export_text()
    assert "0.500" in shown and "0.750" in shown and "+0.250" in shown and "p 1, n 4" in shown


def test_as_json_says_the_same(two):
    said = json.loads(json.dumps(compare(load_evaluations(two)).as_dict()))
    assert [run["label"] for run in said["runs"]] == ["one", "two"]
    (difference,) = said["differences"]
    assert (difference["run"], difference["to"]) == ("two", "one")
    assert difference["metrics"]["accuracy"] == {
        "difference": asdict(compare(load_evaluations(two)).differences[0]["accuracy"].difference),
        "p_value": 1.0,
    }
