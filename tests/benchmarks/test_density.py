"""What the density benchmark reads off held-out episodes: rates, what looks show, frames and tokens."""

import argparse
import json
import math

import pytest

from benchmarks.density import runs
from benchmarks.density.__main__ import train_all
from benchmarks.density.looks import Episode, Look, episodes, measures, rate_by_need
from benchmarks.density.report import MeasuredRun, by_need_table, differences, rate_cell, share_cell, table
from benchmarks.density.runs import ARMS, BUDGET, CONFIGS, FinishedRun
from envs.synthetic.world import QuickstartWorld, world_rows
from rl.config.file import load_config, to_yaml

WORLD = {"train_clips": 2, "held_out_clips": 2, "native_fps": 24.0, "detail_fps": [2.0, 12.0]}


def look(fps, frames=4, shows=True, scenes=3):
    return Look(fps, 2.0, frames, scenes, shows)


def episode(needed, *looks, right=True):
    return Episode(needed, looks, right, 20, 100, 30, 40)


def test_rates_are_compared_in_octaves():
    found = measures([episode(2.0, look(4.0)), episode(8.0, look(4.0, shows=False), right=False)])

    assert found["asked / needed"] == pytest.approx(1.0)  # one octave above, one below
    assert (found["octaves off"], found["enough"], found["slope"]) == pytest.approx((1.0, 0.5, 0.0))
    assert measures([episode(2.0, look(2.0)), episode(8.0, look(8.0))])["slope"] == pytest.approx(1.0)


def test_costs_are_per_episode_and_per_right_answer():
    found = measures([episode(2.0, look(2.0, 4), look(4.0, 8, shows=False)), episode(2.0, right=False)])

    assert (found["accuracy"], found["looks"], found["frames"]) == (0.5, 1.0, 6.0)
    assert (found["looks that show it"], found["episodes that show it"]) == (0.5, 0.5)
    assert (found["frames per right answer"], found["tokens per right answer"]) == (12.0, 280.0)
    assert math.isnan(measures([episode(2.0, right=False)])["frames per right answer"])


def test_the_last_look_is_the_one_answered_upon():
    assert rate_by_need([episode(2.0, look(8.0), look(2.0)), episode(2.0), episode(2.0, look(8.0))]) == {
        2.0: pytest.approx(4.0)
    }


def test_episodes_are_read_off_a_runs_records(tmp_path):
    config = load_config(list(CONFIGS), [f"data.quickstart.{key}={value}" for key, value in WORLD.items()])
    rows = world_rows(QuickstartWorld(**WORLD, shuffle_options=False), "held_out")
    (start_s, _, _) = rows[0]["flashes_s"][0]
    frames = {"timestamps_s": [round(start_s, 3), start_s + 2], "scene_lengths": [1, 1], "height": 56, "width": 56}
    call = {"granted_s": [1.0, 3.0], "granted_fps": 3.0, "frames": 2}
    blind = {"granted_s": [1.0, 3.0], "granted_fps": 2.0, "frames": 2}
    turns = [turn(80, call=blind), turn(20, call={"refused": "x"}, frames=frames | {"timestamps_s": [0.0, 0.5]})]
    turns += [turn(6, call=call), turn(20, frames=frames)]
    record = {
        "task": {"video": f"/elsewhere/{rows[0]['video']}"},
        "coarse_frames": frames | {"scene_lengths": [8]},
        "turns": turns,
        "rewards": {"terms": {"answer": 1.0}},
    }
    (tmp_path / "held_out").mkdir()
    (tmp_path / "held_out" / "step_000000.jsonl").write_text(json.dumps(record) + "\n")
    (tmp_path / "config.yaml").write_text(to_yaml(config))

    (found,) = episodes(FinishedRun("answer", 0, tmp_path), 0)

    assert found.looks == (Look(2.0, 2.0, 2, 2, False), Look(3.0, 2.0, 2, 2, True))
    assert (found.needed_fps, found.is_right, found.asked_fps, found.frames) == (rows[0]["fps"], True, 3.0, 4)
    assert (found.visual_tokens, found.prompt_tokens, found.look_tokens) == (4 * 5, 126, 46)


def turn(context, call=None, frames=None):
    return {"context_tokens": context, "sampled_tokens": 5, "call": call, "frames": frames}


def test_tables_have_the_arms_of_all_seeds_and_differ_within_seeds():
    def run(arm, seed, rate, needs=(2.0, 8.0)):
        found = measures([episode(need, look(rate, frames=round(rate))) for need in needs])
        by_need = (dict.fromkeys(needs, value) for value in (8.0, rate, 0.25, 1.0))
        return MeasuredRun(arm, seed, found, found, *by_need)

    found = [
        run("answer", 0, 8.0),
        run("answer", 1, 8.0),
        run("cheap", 0, 4.0),
        run("cheap", 1, 4.0),
        run("dear", 5, 2),
    ]

    headings, rows = by_need_table(found, "rates", rate_cell)
    assert headings == ("arm", "needs 2", "needs 8")
    assert [row[:2] for row in rows][:3] == [
        ("*before, one call*", "8.000 ± 0.000"),
        ("answer alone", "8.000 ± 0.000"),
        ("answer, low price", "4.000 ± 0.000"),
    ]
    assert [row[1] for row in by_need_table(found, "right", share_cell)[1]][:2] == ["0.250 ± 0.000", "1.000 ± 0.000"]
    assert next(row[0] for row in table(found, ("accuracy",))) == "*before, one call*"
    (row,) = differences(found, "answer")
    assert row[:2] == ("answer, low price - answer alone", "2") and row[3] == "**-4.000 ± 0.000**"


def test_every_arm_is_a_configuration_and_a_price_leaves_the_window_what_it_earned():
    configs = {arm: load_config(list(CONFIGS), ARMS[arm].overrides) for arm in ARMS}

    assert {config.retrieval.max_frames for config in configs.values()} == {BUDGET}
    rules, terms = configs["cheap"].algorithm.advantage, configs["cheap"].rewards
    share = terms["window"].weight / (terms["window"].weight + terms["cost"].weight)
    unpriced = configs["answer"].algorithm.advantage
    assert share * rules.sampling_weight == unpriced.sampling_weight == unpriced.reasoning_weight
    assert configs["fixed_low"].retrieval.min_fps == configs["fixed_low"].retrieval.max_fps
    assert configs["calls"].cold_start.looks == configs["calls"].retrieval.max_calls == 3


def test_arms_begin_with_one_cold_start_that_knows_nothing_of_their_rewards(tmp_path, monkeypatch):
    """A rate that is fixed must not reach the traces: they would answer what their frames no longer show."""
    cold_starts, trainings = [], []
    monkeypatch.setattr(runs, "cold_started", lambda arguments: cold_starts.append(arguments) or "POLICY")
    monkeypatch.setattr(runs, "train", trainings.append)
    (tmp_path / "dear-0").mkdir()
    (tmp_path / "answer-0").mkdir()
    (tmp_path / "answer-0" / "summary.json").write_text("{}")
    options = argparse.Namespace(seeds=[0], arms=["answer", "fixed_low", "dear", "calls"], home=tmp_path, jobs=2)
    options.overrides = ["trainer.steps=1"]

    train_all(options)

    begun = sorted(("retrieval.max_calls=3" in given, len(given)) for given in cold_starts)
    assert [several for several, _ in begun] == [False, True] and begun[1][1] - begun[0][1] == len(runs.SEVERAL)
    assert {next(text for text in given if text.startswith("name=")) for given in trainings} == {
        "name=fixed_low-0",
        "name=dear-0",  # it has not come to its end; answer has
        "name=calls-0",
    }
    assert all({"policy.path=POLICY", "cold_start.enabled=false", "trainer.steps=1"} <= set(run) for run in trainings)
    assert [run.arm for run in runs.read(tmp_path, options.arms, [0])] == ["answer"]
