"""A command that is refused changes nothing."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from rl.checkpoint.lease_file import LEASE
from rl.checkpoint.store import CheckpointStore
from rl.config.errors import ConfigError
from rl.config.file import load_config, to_yaml
from rl.report.run_files import read_config
from rl.trajectory import RunState
from tests.rl.learner.learner_files import save_learner

pytestmark = pytest.mark.ray  # Ray is imported; no cluster is needed

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"


@pytest.fixture
def config_of(tmp_path):
    def load(*overrides):
        places = [f"output_dir={tmp_path}/runs", f"cache_dir={tmp_path}/cache", "name=run", "trainer.eval_tasks=0"]
        return load_config([QUICKSTART], [*places, *overrides])

    return load


@pytest.fixture
def finished(config_of, tmp_path):
    """A run of three steps, done."""
    run, config = tmp_path / "runs" / "run", config_of("trainer.steps=3")
    store = CheckpointStore(run)
    draft = store.begin(3)
    save_learner(draft)
    store.commit(draft, RunState(3, 3, seed=0), to_yaml(config))
    (run / "config.yaml").write_text(to_yaml(config))
    numbers = {"seconds/step": 1.0, "policy/version": 0, "reward/failed": 0.0, "rollout/video_errors": 0.0}
    lines = [json.dumps({"step": step, **numbers, "policy/version": step}) for step in (1, 2, 3)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return run


def train(config):
    from rl.run.train import run_training

    console = Console(quiet=True)
    return run_training(config, console)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "refused",
    [
        ["trainer.steps=100", "rewards.answer.weight=0.5"],  # another meaning
        ["trainer.steps=100", "policy.path=/no/such/policy", "resume_changed=true"],
        ["trainer.steps=100", "policy.path=/no/such/policy", "resume=never"],
        ["trainer.steps=100", "rewards.answer.fn=no.such:reward"],
        ["trainer.steps=100", "resume=/no/such/checkpoint"],
    ],
)
def test_a_refused_command_leaves_a_finished_run_and_its_report_as_they_are(finished, config_of, refused):
    before = contents(finished)
    with pytest.raises(ConfigError):
        train(config_of(*refused))
    assert contents(finished) == before
    assert list(finished.parent.iterdir()) == [finished]
    assert dict(read_config(finished)[0])["trainer.steps"] == "3"  # what the report counts its steps against


def test_a_refused_command_rewrites_nothing_of_a_live_run(finished, config_of):
    from rl.run.writer import only_writer

    with only_writer(config_of(), None):
        before = contents(finished)
        with pytest.raises(ConfigError, match="this run is being written by process"):
            train(config_of("trainer.steps=100"))
        after = contents(finished)
    assert {k: v for k, v in after.items() if k.name != LEASE} == {k: v for k, v in before.items() if k.name != LEASE}


@pytest.mark.parametrize(
    "refused", ["policy.path=/no/such/policy", "rewards.answer.fn=no.such:reward", "resume=/nothing"]
)
def test_a_refused_command_leaves_no_empty_run(config_of, tmp_path, refused):
    with pytest.raises(ConfigError):
        train(config_of(refused))
    assert not (tmp_path / "runs" / "run").exists()


def test_a_run_that_is_done_starts_nothing_and_keeps_its_configuration(finished, config_of):
    before = contents(finished)
    assert train(config_of("trainer.steps=2"))["steps"] == 3
    after = contents(finished)
    assert {path: text for path, text in after.items() if path.name != "summary.json"} == before
