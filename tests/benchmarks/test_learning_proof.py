"""What the learning proof reports: intervals over seeds, and credit of misplaced cases on the same groups."""

import json
import math

import pytest

from benchmarks.learning.report import credit_table, difference_table, interval, outcome_table
from benchmarks.learning.runs import FinishedRun, kind_of, read


def record(sibling, window, answer):
    terms = {"window": window, "frame_rate": 1.0, "answer": answer, "format": 1.0}
    sampling, reasoning = (window + 1.0) / 2, 0.9 * answer + 0.1
    return {
        "sibling": sibling,
        "turns": [{"call": {"frames": 2}}, {"call": None}],
        "rewards": {"sampling": sampling, "reasoning": reasoning, "terms": terms},
    }


def run(tmp_path, variant="sd_grpo", seed=0, window=(0.5, 0.7), groups=()):
    """A finished run of two evaluations and one step."""
    folder = tmp_path / f"{variant}-{seed}"
    (folder / "trajectories").mkdir(parents=True)
    lines = [json.dumps(one) + "\n" for group in groups for one in group]
    (folder / "trajectories" / "step_000001.jsonl").write_text("".join(lines))
    names = ("term/window", "term/frame_rate", "accuracy", "granted_calls", "frames", "tasks")
    held_out = tuple(
        {"step": 10 * i, **{f"held_out/{name}": value for name in names}} for i, value in enumerate(window)
    )
    degenerate = {f"group/zero_variance_{role}": 0.25 for role in ("sampling", "reasoning", "both")}
    return FinishedRun(variant, seed, folder, held_out, ({"step": 1, **degenerate},))


def test_an_interval_is_students():
    # of 1, 2, 3: mean 2, std 1, t at 2 degrees of freedom 4.302653, over sqrt(3)
    found = interval([1.0, 2.0, 3.0])
    assert (found.mean, found.half) == pytest.approx((2.0, 4.302653 / math.sqrt(3)))
    assert not found.excludes_zero
    assert math.isnan(interval([1.0]).half)


def test_the_first_row_is_before_any_learning(tmp_path):
    rows = list(outcome_table([run(tmp_path, seed=seed) for seed in (0, 1)]))

    assert [row[0] for row in rows] == ["no RL", "sd_grpo"]
    assert (rows[0][1], rows[1][1]) == ("0.500 ± 0.000", "0.700 ± 0.000")
    assert rows[1][-1] == "0.250 ± 0.000"


def test_differences_are_taken_within_seeds(tmp_path):
    runs = [run(tmp_path, "grpo", s, (0.5, end)) for s, end in ((0, 0.5), (1, 0.7), (2, 0.9))]
    runs += [run(tmp_path, "sd_grpo", s, (0.5, end)) for s, end in ((0, 0.6), (1, 0.8), (3, 0.1))]

    (row,) = difference_table(runs, "grpo")
    assert row[:3] == ("sd_grpo - grpo", "2", "**+0.100 ± 0.000**")  # seeds 2 and 3 have no partner


def test_only_a_decoupled_rule_blames_a_lucky_answers_look(tmp_path):
    group = [record(0, 0.0, 1), record(1, 0.8, 0), record(2, 0.8, 0), record(3, 0.8, 0)]
    rows = {(case[:12], rule): cells for case, rule, *cells in credit_table([run(tmp_path, groups=[group])])}

    # R_samp .5 .9 .9 .9, R_reason 1 .1 .1 .1: for GRPO the lucky one is the best of the group
    number, look, answer, wrong = rows["right answer", "grpo"]
    assert (number, float(look) > 0, float(answer) > 0, wrong) == ("1", True, True, "100%")
    number, look, answer, wrong = rows["right answer", "sd_grpo"]
    assert (number, float(look) < 0, float(answer) > 0, wrong) == ("1", True, True, "0%")
    assert rows["right window", "grpo"][0] == "3"
    assert rows["right window", "grpo"][3] == "100%"
    assert rows["right window", "sd_grpo"][3] == "0%"


def test_unfinished_runs_are_not_read(tmp_path):
    (tmp_path / "grpo-0").mkdir()

    assert read(tmp_path, ["grpo"], [0]) == []


def test_a_kind_is_known_by_its_question():
    asked = {"task": {"question": "<video>\nIs the flash warm or cold? A warm B cold"}}

    assert kind_of(asked, ["count", "warmth", "mislabelled"]) == "warmth"
