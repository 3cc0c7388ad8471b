"""What the credit benchmark reports: paired intervals, winners by regime, and credit of misplaced cases."""

import json
import math

import pytest

from benchmarks.intervals import interval, signed
from benchmarks.learning import __main__ as program
from benchmarks.learning.bandit import TRAJECTORIES
from benchmarks.learning.finished import FinishedRun, ceilings, credit, keep_finished, read
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
    Run,
    ceiling_name,
    runs_of,
)
from benchmarks.records import RunRecords
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


GROUP = [record(0, 0.0, 1), record(1, 0.8, 0), record(2, 0.8, 0), record(3, 0.8, 0)]


def evaluation(step, accuracy, frames=6.0):
    return {
        "step": step,
        "held_out/tasks": 4,
        "held_out/accuracy": accuracy,
        "held_out/term/window": 0.5,
        "held_out/frames": frames,
    }


def run(method="sd_grpo", seed=0, accuracy=(0.4, 0.6, 0.8), groups=(), regime=BASE):
    """A finished run of three evaluations."""
    held_out = tuple(evaluation(20 * i, value) for i, value in enumerate(accuracy))
    return FinishedRun(regime, method, seed, held_out, credit(groups))


def runs_with(**ends):
    """Runs of methods whose accuracies at the end are given seed by seed."""
    return [run(method, seed, (0.4, end, end)) for method, of in ends.items() for seed, end in enumerate(of)]


def finished(folder, *lines, groups=()):
    """A run's folder as a run that came to its end leaves it, as far as the benchmark reads it."""
    (folder / "trajectories").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    records = [json.dumps(one) + "\n" for group in groups for one in group]
    (folder / "trajectories" / "step_000001.jsonl").write_text("".join(records))
    (folder / "summary.json").write_text("{}")


def test_an_interval_is_students():
    # of 1, 2, 3: mean 2, std 1, t at 2 degrees of freedom 4.302653, over sqrt(3)
    found = interval([1.0, 2.0, 3.0])
    assert (found.mean, found.half) == pytest.approx((2.0, 4.302653 / math.sqrt(3)))
    assert not found.excludes_zero
    assert math.isnan(interval([1.0]).half)


def test_the_first_row_of_a_regime_is_before_any_learning():
    before, after = outcome_table([run(seed=seed) for seed in (0, 1)])

    assert before[:4] == (TITLE, "no RL", "2", "0.400 ± 0.000")
    # at the end .8, on average over the curve .7, and 6 frames for .8 right answers
    assert after[:5] == (TITLE, "sd_grpo", "2", "0.800 ± 0.000", "0.700 ± 0.000")
    assert after[-1] == "7.500 ± 0.000"


def test_differences_are_taken_within_seeds():
    runs = [run("grpo", s, (0.5, 0.5, end)) for s, end in ((0, 0.5), (1, 0.7), (2, 0.9))]
    runs += [run("sd_grpo", s, (0.5, 0.5, end)) for s, end in ((0, 0.6), (1, 0.8), (3, 0.1))]

    (row,) = difference_table(runs)
    assert row[:3] == (TITLE, "sd_grpo - grpo", "2")  # seeds 2 and 3 have no partner
    assert row[3 + END] == "**+0.100 ± 0.000**"


def test_the_last_row_is_the_mean_over_regimes_of_each_seed_that_all_of_them_have():
    ends = {(BASE, "grpo"): (0.5, 0.6, 0.7), (BASE, "sd_grpo"): (0.6, 0.7), ("noise0", "grpo"): (0.5, 0.5)}
    ends |= {("noise0", "sd_grpo"): (0.6, 0.9), (BASE, "gdpo"): (0.1, 0.1)}
    runs = [run(m, s, (0.4, end, end), regime=r) for (r, m), of in ends.items() for s, end in enumerate(of)]

    *_, row = difference_table(runs)
    assert row[:3] == ("mean of 2 regimes", "sd_grpo - grpo", "2")  # gdpo is not in all
    assert row[3 + END] == str(signed(interval([0.1, 0.25])))


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
def test_a_winner_is_better_than_every_other_with_certainty(ends, said):
    ((title, _, *cells),) = winner_table(runs_with(**ends))

    assert (title, cells[END]) == (TITLE, said)


def test_fewer_frames_per_right_answer_win():
    runs = runs_with(grpo=(0.5, 0.5), sd_grpo=(0.8, 0.8))

    assert next(iter(winner_table(runs)))[-1] == "**sd_grpo**"


def test_tables_say_how_many_seeds_each_cell_has():
    runs = runs_with(grpo=(0.5, 0.6, 0.7), sd_grpo=(0.8, 0.9))

    assert next(iter(winner_table(runs)))[1] == "2 to 3"
    assert [row[2] for row in outcome_table(runs)] == ["3", "3", "2"]


def test_room_is_told_world_by_world_and_only_of_those_there_are():
    (row,) = room_table([run(seed=seed) for seed in (0, 1)], {"colour": [0.9], "warmth": [], "looks": []})

    assert row == ("colour", "0.25", "0.400 ± 0.000 (2 seeds)", "0.900 (1 seed)")


def test_only_a_decoupled_rule_blames_a_lucky_answers_look():
    rows = {(case[:12], rule): cells for case, rule, *cells in credit_table([run(groups=[GROUP])])}

    # R_samp .5 .9 .9 .9, R_reason 1 .1 .1 .1: for GRPO the lucky one is the best of the group
    number, look, answer, wrong = rows["right answer", "grpo"]
    assert (number, float(look) > 0, float(answer) > 0, wrong) == ("1", True, True, "100%")
    number, look, answer, wrong = rows["right answer", "sd_grpo"]
    assert (number, float(look) < 0, float(answer) > 0, wrong) == ("1", True, True, "0%")
    assert rows["right window", "grpo"][0] == "3"
    assert rows["right window", "grpo"][3] == "100%"
    assert rows["right window", "sd_grpo"][3] == "0%"


def test_finished_runs_are_put_on_record_and_count_without_their_folders(tmp_path):
    asked, ceiling = [Run(BASE, "grpo", seed) for seed in (0, 1)], ceiling_name("colour", 0)
    step = {"step": 1, "seconds/step": 2.0}
    finished(tmp_path / asked[0].name, evaluation(0, 0.4), step, evaluation(50, 0.9), groups=[GROUP, GROUP])
    finished(tmp_path / ceiling, evaluation(0, 0.95))
    (tmp_path / asked[1].name).mkdir()  # begun, and no more
    path = tmp_path / "out" / "runs.jsonl"

    keep_finished(RunRecords(path, []), tmp_path, asked, [0, 1])
    elsewhere = RunRecords(path, [])
    (found,) = read(elsewhere, asked)
    evaluations = (evaluation(0, 0.4), evaluation(50, 0.9))
    assert found == FinishedRun(BASE, "grpo", 0, evaluations, credit([GROUP, GROUP]))
    assert ceilings(elsewhere, [0, 1]) == {"colour": [0.95], "warmth": [], "looks": []}


def test_what_is_on_record_is_not_mixed_with_runs_of_other_settings(tmp_path):
    RunRecords(tmp_path / "runs.jsonl", ["trainer.steps=3", "seed=1"]).add("noise0-grpo-0", {"held_out": []})

    assert "noise0-grpo-0" in RunRecords(tmp_path / "runs.jsonl", ["seed=1", "trainer.steps=3"])
    with pytest.raises(
        SystemExit, match=r"runs\.jsonl: noise0-grpo-0 ran with seed=1 trainer\.steps=3, this is no over"
    ):
        RunRecords(tmp_path / "runs.jsonl", [])


def test_a_seed_makes_each_cold_start_once_and_only_those_that_missing_runs_begin_with(tmp_path, monkeypatch):
    begun, trained, measured = [], {}, []
    monkeypatch.setattr(program, "cold_start", lambda world, *_: begun.append(world) or f"/policy of {world}")
    monkeypatch.setattr(program, "train_run", lambda run, policy, *_: trained.__setitem__(run.name, policy))
    monkeypatch.setattr(program, "train_on_perfect_looks", lambda world, *_: measured.append(world))
    arguments = ["--regimes", "noise0", "noise30", "looks2", "--methods", "grpo", "sd_grpo-each", "--ceilings", "1"]
    monkeypatch.setattr("sys.argv", ["learning", *arguments, "--home", str(tmp_path), "--out", str(tmp_path / "out")])
    options = program.parse_arguments()
    records = RunRecords(options.out / "runs.jsonl", [])

    program.train_seed(0, options, records)
    assert sorted(begun) == ["colour", "looks"] and sorted(measured) == ["colour", "looks"]
    assert trained == {
        "noise0-grpo-0": "/policy of colour",
        "noise30-grpo-0": "/policy of colour",
        "looks2-grpo-0": "/policy of looks",
        "looks2-sd_grpo-each-0": "/policy of looks",
    }
    for name in (*trained, ceiling_name("colour", 0)):
        finished(tmp_path / name)
    for kept in (begun, measured):
        kept.clear()
    program.train_seed(0, options, records)
    assert begun == [] and measured == ["looks"]


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
