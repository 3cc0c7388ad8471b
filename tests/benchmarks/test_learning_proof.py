"""What the credit benchmark reports: paired intervals, winners by regime, and credit of misplaced cases."""

import json
import math

import pytest

from benchmarks.intervals import interval
from benchmarks.learning import __main__ as program
from benchmarks.learning.bandit import TRAJECTORIES
from benchmarks.learning.report import (
    MEASURES,
    credit_table,
    difference_table,
    outcome_table,
    room_table,
    winner_table,
)
from benchmarks.learning.runs import (
    BASE,
    CONFIGS,
    METHODS,
    REGIMES,
    STEPS,
    WORLDS,
    FinishedRun,
    ceiling_name,
    ceilings,
    read,
    runs_of,
)
from rl.config.file import load_config

TITLE = REGIMES[BASE].title
END = list(MEASURES).index("answer accuracy, end")


def record(sibling, window, answer):
    terms = {"window": window, "frame_rate": 1.0, "answer": answer, "format": 1.0}
    sampling, reasoning = (window + 1.0) / 2, 0.9 * answer + 0.1
    return {
        "sibling": sibling,
        "turns": [{"call": {"frames": 2}}, {"call": None}],
        "rewards": {"sampling": sampling, "reasoning": reasoning, "terms": terms},
    }


def evaluation(step, accuracy, frames=6.0):
    return {
        "step": step,
        "held_out/tasks": 4,
        "held_out/accuracy": accuracy,
        "held_out/term/window": 0.5,
        "held_out/frames": frames,
    }


def run(tmp_path, method="sd_grpo", seed=0, accuracy=(0.4, 0.6, 0.8), groups=(), regime=BASE):
    """A finished run of three evaluations and one step."""
    folder = tmp_path / f"{regime}-{method}-{seed}"
    (folder / "trajectories").mkdir(parents=True)
    lines = [json.dumps(one) + "\n" for group in groups for one in group]
    (folder / "trajectories" / "step_000001.jsonl").write_text("".join(lines))
    held_out = tuple(evaluation(20 * i, value) for i, value in enumerate(accuracy))
    return FinishedRun(regime, method, seed, folder, held_out, ({"step": 1},))


def runs_with(tmp_path, **ends):
    """Runs of methods whose accuracies at the end are given seed by seed."""
    return [run(tmp_path, method, seed, (0.4, end, end)) for method, of in ends.items() for seed, end in enumerate(of)]


def test_an_interval_is_students():
    # of 1, 2, 3: mean 2, std 1, t at 2 degrees of freedom 4.302653, over sqrt(3)
    found = interval([1.0, 2.0, 3.0])
    assert (found.mean, found.half) == pytest.approx((2.0, 4.302653 / math.sqrt(3)))
    assert not found.excludes_zero
    assert math.isnan(interval([1.0]).half)


def test_the_first_row_of_a_regime_is_before_any_learning(tmp_path):
    before, after = outcome_table([run(tmp_path, seed=seed) for seed in (0, 1)])

    assert before[:4] == (TITLE, "no RL", "2", "0.400 ± 0.000")
    # at the end .8, on average over the curve .7, and 6 frames for .8 right answers
    assert after[:5] == (TITLE, "sd_grpo", "2", "0.800 ± 0.000", "0.700 ± 0.000")
    assert after[-1] == "7.500 ± 0.000"


def test_differences_are_taken_within_seeds(tmp_path):
    runs = [run(tmp_path, "grpo", s, (0.5, 0.5, end)) for s, end in ((0, 0.5), (1, 0.7), (2, 0.9))]
    runs += [run(tmp_path, "sd_grpo", s, (0.5, 0.5, end)) for s, end in ((0, 0.6), (1, 0.8), (3, 0.1))]

    (row,) = difference_table(runs)
    assert row[:3] == (TITLE, "sd_grpo - grpo", "2")  # seeds 2 and 3 have no partner
    assert row[3 + END] == "**+0.100 ± 0.000**"


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ({"grpo": (0.5, 0.6), "gdpo": (0.6, 0.7), "sd_grpo": (0.8, 0.9)}, "**sd_grpo**"),
        ({"grpo": (0.5, 0.6), "gdpo": (0.9, 0.7), "sd_grpo": (0.9, 0.5)}, "not told apart"),
        ({"grpo": (0.5, 0.6), "gdpo": (0.9, 0.8), "sd_grpo": (0.8, 0.9001)}, "not told apart: sd_grpo, gdpo"),
        ({"sd_grpo": (0.8, 0.9)}, "nothing to compare"),
        ({"grpo": (0.5,), "sd_grpo": (0.8,)}, "not told apart"),  # one seed says nothing
    ],
)
def test_a_winner_is_better_than_every_other_with_certainty(tmp_path, ends, said):
    ((title, _, *cells),) = winner_table(runs_with(tmp_path, **ends))

    assert (title, cells[END]) == (TITLE, said)


def test_fewer_frames_per_right_answer_win(tmp_path):
    runs = runs_with(tmp_path, grpo=(0.5, 0.5), sd_grpo=(0.8, 0.8))

    assert next(iter(winner_table(runs)))[-1] == "**sd_grpo**"


def test_tables_say_how_many_seeds_each_cell_has(tmp_path):
    runs = runs_with(tmp_path, grpo=(0.5, 0.6, 0.7), sd_grpo=(0.8, 0.9))

    assert next(iter(winner_table(runs)))[1] == "2 to 3"
    assert [row[2] for row in outcome_table(runs)] == ["3", "3", "2"]


def test_room_is_told_world_by_world_and_only_of_those_there_are(tmp_path):
    (row,) = room_table([run(tmp_path, seed=seed) for seed in (0, 1)], {"colour": [0.9], "warmth": [], "looks": []})

    assert row == ("colour", "0.25", "0.400 ± 0.000 (2 seeds)", "0.900 (1 seed)")


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


def test_unfinished_runs_are_not_read_and_finished_ones_are(tmp_path):
    done, begun = tmp_path / f"{BASE}-grpo-0", tmp_path / f"{BASE}-grpo-1"
    for folder in (done, begun, tmp_path / ceiling_name("colour", 0)):
        folder.mkdir()
        (folder / "metrics.jsonl").write_text(json.dumps(evaluation(0, 0.9)) + "\n")
    for folder in (done, tmp_path / ceiling_name("colour", 0)):
        (folder / "summary.json").write_text("{}")

    assert [(found.regime, found.method, found.seed) for found in read(tmp_path, [0, 1], REGIMES, METHODS)] == [
        (BASE, "grpo", 0)
    ]
    assert ceilings(tmp_path, [0, 1]) == {"colour": [0.9], "warmth": [], "looks": []}


def test_a_seed_makes_each_cold_start_once_and_only_those_that_missing_runs_begin_with(tmp_path, monkeypatch):
    begun, trained, measured = [], {}, []
    monkeypatch.setattr(program, "cold_start", lambda world, *_: begun.append(world) or f"/policy of {world}")
    monkeypatch.setattr(program, "train_run", lambda run, policy, *_: trained.__setitem__(run.name, policy))
    monkeypatch.setattr(program, "train_on_perfect_looks", lambda world, *_: measured.append(world))
    arguments = ["--regimes", "noise0", "noise30", "looks2", "--methods", "grpo", "sd_grpo-each", "--ceilings", "1"]
    monkeypatch.setattr("sys.argv", ["learning", *arguments, "--home", str(tmp_path)])
    options = program.parse_arguments()

    program.train_seed(0, options)
    assert sorted(begun) == ["colour", "looks"] and sorted(measured) == ["colour", "looks"]
    assert trained == {
        "noise0-grpo-0": "/policy of colour",
        "noise30-grpo-0": "/policy of colour",
        "looks2-grpo-0": "/policy of looks",
        "looks2-sd_grpo-each-0": "/policy of looks",
    }
    for name in trained:
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text("{}")
    for kept in (begun, measured):
        kept.clear()
    program.train_seed(0, options)
    assert begun == [] and sorted(measured) == ["colour", "looks"]  # a finished ceiling is left as it is by itself


def test_cross_credit_is_gone_when_the_runs_end():
    assert load_config(CONFIGS, METHODS["sd_grpo-scheduled"]).algorithm.advantage.cross_credit_steps == STEPS
    assert load_config(CONFIGS).trainer.steps == STEPS


@pytest.mark.parametrize("regime", REGIMES.values(), ids=REGIMES)
def test_every_regime_has_the_same_number_of_trajectories_in_a_step(regime):
    rollout = load_config(CONFIGS, [*WORLDS[regime.world].overrides, *regime.overrides]).rollout

    assert rollout.group_size * rollout.tasks_per_step == TRAJECTORIES


def test_credit_by_call_is_compared_where_there_are_several_calls():
    names = [run.name for run in runs_of(3, REGIMES, METHODS)]

    assert len(names) == len(set(names)) == 7 * 4 + 1
    assert [name for name in names if "each" in name] == ["looks2-sd_grpo-each-3"]
