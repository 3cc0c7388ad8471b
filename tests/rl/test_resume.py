"""A run goes on only from a checkpoint of its own."""

from dataclasses import replace
from pathlib import Path

import pytest

from rl.checkpoint import CheckpointStore
from rl.config import ConfigError, load_config, to_yaml
from rl.resume import checkpoint_of, find_checkpoint
from rl.trajectory import RunState

CONFIG = load_config([Path(__file__).parents[2] / "configs" / "quickstart.yaml"])


@pytest.fixture
def store(tmp_path):
    store = CheckpointStore(tmp_path)
    for step in (5, 10):
        store.commit(store.begin(step), RunState(step, step, seed=0), to_yaml(CONFIG))
    return store


def test_auto_takes_the_newest_whole_one_never_takes_none_a_path_takes_that_one(store):
    assert find_checkpoint(CONFIG, store).state.step == 10
    assert find_checkpoint(replace(CONFIG, resume="never"), store) is None
    older = store.folder / "step_00000005"
    assert find_checkpoint(replace(CONFIG, resume=str(older)), store).state.step == 5


def test_a_run_says_what_it_passes_over_and_why(store):
    (store.folder / "step_00000010" / "state.json").write_text("{}")
    said = []
    assert find_checkpoint(CONFIG, store, say=said.append).state.step == 5
    (line,) = said
    assert line.startswith("checkpoint passed over: ") and "step_00000010/state.json: 2 bytes" in line


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_at_zero_unless_told(store):
    for step in ("step_00000005", "step_00000010"):
        (store.folder / step / "manifest.json").unlink()
    said = []
    with pytest.raises(ConfigError, match=r"resume: 2 checkpoints are there .*none is whole.*resume=never") as refusal:
        find_checkpoint(CONFIG, store, say=said.append)
    assert len(str(refusal.value).splitlines()) == 1 and len(said) == 2
    assert find_checkpoint(replace(CONFIG, resume="never"), store) is None


def test_a_run_killed_in_its_first_save_starts_afresh(tmp_path):
    store = CheckpointStore(tmp_path)
    (store.begin(5) / "rank_0.safetensors").write_bytes(b"half")
    assert find_checkpoint(CONFIG, store) is None


def test_a_run_with_other_rewards_is_another_run(store):
    mine = load_config([Path(__file__).parents[2] / "configs" / "quickstart.yaml"], ["rewards.answer.weight=0.5"])
    with pytest.raises(ConfigError, match=r"rewards\.answer\.weight: 0\.9 -> 0\.5.*name="):
        find_checkpoint(mine, store)


def test_a_run_may_become_longer_and_move_elsewhere(store):
    changes = ["trainer.steps=500", "placement.colocate=false", "rollout.call_timeout_s=9", "logging.wandb=offline"]
    longer = load_config([Path(__file__).parents[2] / "configs" / "quickstart.yaml"], changes)
    assert find_checkpoint(longer, store).state.step == 10


def test_a_policy_is_taken_from_a_run_newest_or_best_or_from_one_checkpoint(tmp_path):
    store = CheckpointStore(tmp_path, keep=1, best_metric="held_out/accuracy")
    for step, value in ((5, 0.9), (10, 0.1)):
        store.commit(store.begin(step), RunState(step, step, seed=0), to_yaml(CONFIG), value)
    assert checkpoint_of(tmp_path).state.step == 10
    assert checkpoint_of(tmp_path, best=True).state.step == 5
    assert checkpoint_of(store.folder / "step_00000005").state.step == 5


def test_where_no_policy_can_be_taken_it_is_said_why(store, tmp_path):
    with pytest.raises(ConfigError, match="no checkpoint is known as the best"):
        checkpoint_of(tmp_path, best=True)
    with pytest.raises(ConfigError, match="neither a run nor a checkpoint"):
        checkpoint_of(tmp_path / "nowhere")
    (store.folder / "step_00000010" / "state.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"state\.json: 2 bytes"):
        checkpoint_of(store.folder / "step_00000010")
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ConfigError, match="no valid checkpoint in it"):
        checkpoint_of(tmp_path / "empty")


def test_a_path_that_is_no_checkpoint_is_refused_by_name(store, tmp_path):
    with pytest.raises(ConfigError, match=r"resume: .*nowhere"):
        find_checkpoint(replace(CONFIG, resume=str(tmp_path / "nowhere")), store)
