"""Nothing that is loaded from a checkpoint, a run's folder or data runs: rewards come from the user's configuration."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from rl.checkpoint.store import CheckpointStore
from rl.config.errors import ConfigError
from rl.config.file import load_config, to_dict, to_yaml
from rl.report.run_files import read_config
from rl.run.resume import checkpoint_of, find_checkpoint
from rl.trajectory import RunState
from tests.rl.learner.learner_files import save_learner

CONFIG = load_config([Path(__file__).parents[3] / "configs" / "quickstart.yaml"])


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "it-ran"


@pytest.fixture
def store(tmp_path, mark):
    """A checkpoint whose configuration names a reward of its own, in a file that says so when it is loaded."""
    (tmp_path / "evil.py").write_text(
        f"import os\nos.mkdir({str(mark)!r})\ndef score(task, trajectory):\n  return 1.0\n"
    )
    values = to_dict(CONFIG)
    values["rewards"]["answer"]["fn"] = f"{tmp_path}/evil.py:score"
    values["evaluation"]["benchmark"] = "evil:BENCHMARK"
    store = CheckpointStore(tmp_path / "run", keep=2)
    store.commit(store.begin(5), RunState(5, 5, seed=0), yaml.safe_dump(values))
    return store


def test_a_reward_named_by_a_checkpoint_is_compared_and_never_loaded(store, mark):
    with pytest.raises(ConfigError, match=r"rewards\.answer\.fn"):
        find_checkpoint(CONFIG, store)
    found = checkpoint_of(store.folder.parent)
    (found.folder.parents[1] / "config.yaml").write_text(found.config_yaml)
    pairs, broken = read_config(found.folder.parents[1])  # as the report shows it
    assert broken == [] and any(value.endswith("evil.py:score") for _, value in pairs)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ("a: !!python/object/apply:os.mkdir [it-ran]\n", "could not determine a constructor"),
        ("a: " + "[" * 100_000, "nested more than 32 deep"),
        ("a: &a [x, x]\nb: [*a, *a]\n", "an alias"),
        ("a: [1", "not readable as YAML"),
        ("\0", "not readable as YAML"),
    ],
)
def test_a_configuration_in_a_checkpoint_that_builds_more_than_it_says_is_refused(saved, message, tmp_path):
    store = CheckpointStore(tmp_path / "run", keep=2)
    store.commit(store.begin(5), RunState(5, 5, seed=0), saved)
    with pytest.raises(ConfigError, match=message) as refusal:
        find_checkpoint(CONFIG, store)
    assert "config.yaml" in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("saved", ["- 1\n", "hello\n", "", "rewards: 3\n", "1: 2\n"])
def test_a_configuration_in_a_checkpoint_of_another_shape_is_another_run(saved, tmp_path):
    store = CheckpointStore(tmp_path / "run", keep=2)
    store.commit(store.begin(5), RunState(5, 5, seed=0), saved)
    with pytest.raises(ConfigError):
        find_checkpoint(CONFIG, store)


def test_what_we_save_ourselves_is_the_same_run(tmp_path):
    strange = replace(CONFIG, prompt=replace(CONFIG.prompt, system="a: *b &c !d\n\t</script>\u2028\x1b[31m # %"))
    store = CheckpointStore(tmp_path / "run", keep=2)
    draft, said = store.begin(5), []
    save_learner(draft)
    store.commit(draft, RunState(5, 5, seed=0), to_yaml(strange))
    assert find_checkpoint(strange, store, say=said.append).state.step == 5
    assert said == []  # no setting differs
