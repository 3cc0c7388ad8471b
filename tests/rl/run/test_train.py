"""A command that is refused changes nothing."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from rl.checkpoint.lease.folder import LEASE
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
        small = ["data.quickstart.train_clips=2", "data.quickstart.held_out_clips=2", "cold_start.enabled=false"]
        return load_config([QUICKSTART], [*places, *small, *overrides])

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


class Workers:
    """Of a run, without processes: engines that come up or do not, learners that end at once."""

    def __init__(self, fails=""):
        self.fails, self.folder_at_start = fails, []
        self.workers = self

    def wake(self, listener):
        pass

    def wait_ready(self, timeout_s):
        self.folder_at_start = sorted(path.name for path in self.run_dir.iterdir())
        if self.fails:
            raise RuntimeError(self.fails)

    def take_faults(self, **_):
        return []

    poll = restore = load = stop = score_all = None


@pytest.fixture
def start(config_of, monkeypatch, tmp_path):
    from rl.run import rebuilds
    from rl.run import train as module
    from rl.run import workers as engines

    def run(*overrides, fails=""):
        workers = Workers(fails)
        workers.run_dir = tmp_path / "runs" / "run"
        workers.load, workers.stop = lambda folder: None, lambda: None
        monkeypatch.setattr(module, "with_recomputation", lambda config, *_: config)
        for room, name in ((module, "prepare_policy"), (module, "spawn_rewards"), (engines, "spawn_rollouts")):
            monkeypatch.setattr(room, name, lambda *_: workers)
        monkeypatch.setattr(module, "prepare_tasks", lambda *_: SimpleNamespace(tasks=()))
        monkeypatch.setattr(module, "cluster", lambda *_: nullcontext())
        monkeypatch.setattr(module, "Processor", SimpleNamespace(from_pretrained=lambda *_: workers))
        workers.pieces = None
        monkeypatch.setattr(rebuilds, "spawn_learners", lambda *_, **__: workers)
        monkeypatch.setattr(rebuilds, "Attempt", lambda *_: SimpleNamespace(train=lambda: None))
        monkeypatch.setattr(module, "conclude", lambda *_: {})
        train(config_of(*overrides))
        return workers

    return run


def test_the_configuration_is_written_when_every_worker_has_started(start, tmp_path):
    workers = start("trainer.steps=3")
    assert workers.folder_at_start == [LEASE, "logs"]
    assert sorted(path.name for path in (tmp_path / "runs" / "run").iterdir()) == ["config.yaml", "configs", "logs"]


def test_a_start_whose_workers_fail_leaves_its_log_and_nothing_else(start, tmp_path):
    with pytest.raises(RuntimeError, match="no engine"):
        start(fails="no engine")
    run = tmp_path / "runs" / "run"
    assert [path.name for path in run.iterdir()] == ["logs"]
    assert "no engine" in next((run / "logs").iterdir()).read_text()


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_start_whose_workers_fail_leaves_a_finished_run_as_it_is(start, finished, resume):
    before = contents(finished)
    with pytest.raises(RuntimeError, match="no engine"):
        start("trainer.steps=100", f"resume={resume}", fails="no engine")
    after = contents(finished)
    assert {path: text for path, text in after.items() if path.parent.name != "logs"} == before
    assert list(finished.parent.iterdir()) == [finished]


def test_a_fresh_start_moves_a_finished_run_aside_and_keeps_its_own_log(start, finished):
    start("trainer.steps=100", "resume=never")
    (aside,) = (path for path in finished.parent.iterdir() if path != finished)
    assert (aside / "metrics.jsonl").is_file() and "steps: 3" in (aside / "config.yaml").read_text()
    assert sorted(path.name for path in finished.iterdir()) == ["config.yaml", "configs", "logs"]
    assert "steps: 100" in (finished / "config.yaml").read_text()


def test_a_run_that_goes_on_keeps_the_configuration_of_its_earlier_start(start, finished):
    start("trainer.steps=100")
    first, second = sorted((finished / "configs").iterdir())
    assert "steps: 3" in first.read_text() and "steps: 100" in second.read_text()
