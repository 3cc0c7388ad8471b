"""The walk of a published size from its stock folder to an export that loads again, at small widths."""

import json

import pytest

from benchmarks.true_structure import CONFIGS, ROOT, Row, Walk, completed, print_rows, spell_parity
from rl.policy.stock.make import make_checkpoint
from tests.rl.policy.stock.test_make import small


def segment(largest, mean):
    return {"max": largest, "mean": mean, "tokens": 9, "spread": 1.2}


def test_a_row_of_parity_says_largest_and_mean_spread_and_the_least_control():
    report = {"prompt": segment(2e-6, 1e-7), "reasoning": segment(3e-6, 2e-7), "controls": {"a": 0.5, "b": 2.0}}
    said = spell_parity("a table\nfailed: too far\n" + json.dumps({**report, "spread": 1.25}))
    assert said.startswith("prompt max 2.0e-06 mean 1.0e-07; reasoning max 3.0e-06 mean 2.0e-07; spread 1.25 nat; ")
    assert said.endswith("controls >= 5.0e-01; failed: too far")


def test_what_was_done_is_kept_and_not_done_again(tmp_path, capsys):
    row = Row("4B", "check", "ok", 1.5, 0.25)
    (tmp_path / "true_structure.json").write_text(json.dumps([{name: getattr(row, name) for name in row.__slots__}]))
    walk = Walk("4B", tmp_path, CONFIGS["qwen3_vl", "4b"], tmp_path / "stock")
    walk.take("check")
    assert walk.rows == [row]
    print_rows(walk.rows)
    assert "| 4B | check | ok | 1.5 | 0.25 |" in capsys.readouterr().out


def test_a_step_that_fails_ends_the_walk_with_what_it_said():
    with pytest.raises(SystemExit, match=r"step: exit code 3\n.*too small"):
        completed(("-c", "import sys; print('too small'); sys.exit(3)"), "step")


@pytest.mark.parametrize("config", CONFIGS.values())
def test_every_size_has_its_shipped_configuration(config):
    assert (ROOT / "configs" / f"{config}.yaml").is_file()


@pytest.mark.soak
@pytest.mark.parametrize("family, size", [("qwen2_5_vl", "3b"), ("qwen3_vl", "8b")])
def test_every_step_of_a_small_walk_ends_well(family, size, tmp_path):
    stock = make_checkpoint(small(family, size), tmp_path / "stock", vocabulary="tiny")
    walk = Walk(f"small {size}", tmp_path, CONFIGS[family, size], stock)
    for step in walk.steps():
        walk.take(step)
    outcomes = {row.step: row.outcome for row in walk.rows}
    assert outcomes["train 2 steps"].startswith("2 steps") and outcomes["resume to step 3"].startswith("3 steps")
    assert all(row.peak_gib > 0 for row in walk.rows)
