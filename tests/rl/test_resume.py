"""A run goes on only from a checkpoint of its own."""

from dataclasses import replace
from pathlib import Path

import pytest

from rl.checkpoint import CheckpointStore
from rl.config import ConfigError, load_config, to_yaml
from rl.resume import find_checkpoint
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


def test_a_run_with_other_rewards_is_another_run(store):
    mine = load_config([Path(__file__).parents[2] / "configs" / "quickstart.yaml"], ["rewards.answer.weight=0.5"])
    with pytest.raises(ConfigError, match=r"rewards\.answer\.weight: 0\.9 -> 0\.5.*name="):
        find_checkpoint(mine, store)


def test_a_run_may_become_longer_and_move_elsewhere(store):
    changes = ["trainer.steps=500", "placement.colocate=false", "rollout.call_timeout_s=9", "logging.wandb=offline"]
    longer = load_config([Path(__file__).parents[2] / "configs" / "quickstart.yaml"], changes)
    assert find_checkpoint(longer, store).state.step == 10


def test_a_path_that_is_no_checkpoint_is_refused_by_name(store, tmp_path):
    with pytest.raises(ConfigError, match=r"resume: .*nowhere"):
        find_checkpoint(replace(CONFIG, resume=str(tmp_path / "nowhere")), store)
