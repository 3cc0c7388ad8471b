"""The right to write into a run, and what is kept of every start."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from rl.checkpoint.lease.folder import LEASE, FolderLease
from rl.checkpoint.lease.holder import this_process
from rl.checkpoint.lease.lease import Lease, LeaseLostError
from rl.checkpoint.remote import RemoteCheckpoints
from rl.checkpoint.remote_lease import RemoteLease
from rl.config.errors import ConfigError
from rl.config.file import load_config
from rl.run.writer import keep_config, only_writer

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"


@pytest.fixture(autouse=True)
def no_settling(monkeypatch):
    monkeypatch.setattr(RemoteLease, "settle_s", 0.0)


@pytest.fixture
def config(tmp_path):
    places = [f"output_dir={tmp_path}/runs", f"trainer.remote=file://{tmp_path}/remote"]
    return load_config([QUICKSTART], [*places, "name=run"])


def remote_of(config):
    return RemoteCheckpoints(config.trainer.remote, config.name)


def take(config, remote=None):
    with only_writer(config, remote):
        pass


def test_while_a_run_is_written_both_leases_lie_there_and_afterwards_nothing_is_left(config, tmp_path):
    with only_writer(config, remote_of(config)):
        assert (tmp_path / "runs" / "run" / LEASE).is_file() and (tmp_path / "remote" / "run" / LEASE).is_file()
    assert list((tmp_path / "runs").iterdir()) == list((tmp_path / "remote").iterdir()) == []


def test_a_second_start_is_refused_here_and_by_the_remote_and_leaves_nothing(config, tmp_path):
    elsewhere = replace(config, output_dir=f"{tmp_path}/elsewhere")
    with only_writer(config, remote_of(config)):
        with pytest.raises(ConfigError, match=r"runs/run/lease\.json: this run is being written by process"):
            take(config)
        with pytest.raises(ConfigError, match=r"remote/run/lease\.json: this run is being written by process"):
            take(elsewhere, remote_of(elsewhere))
    assert not (tmp_path / "elsewhere" / "run").exists()


def test_a_remote_that_is_the_runs_own_folder_is_refused(config):
    same = replace(config, trainer=replace(config.trainer, remote=f"file://{config.output_dir}"))
    with pytest.raises(ConfigError, match=r"trainer\.remote is the run's own folder"):
        take(same, remote_of(same))


def test_a_folder_that_cannot_be_made_is_told_with_its_key(config, tmp_path):
    (tmp_path / "runs").touch()
    with pytest.raises(ConfigError, match=r"output_dir: cannot write .*/runs/run: "), only_writer(config, None):
        pass


@pytest.mark.parametrize(
    ("variables", "job", "stop"),
    [
        (
            {"RAY_JOB_CONFIG_JSON_ENV_VAR": '{"metadata": {"job_submission_id": "a_1"}}'},
            "Ray job a_1",
            "ray job stop a_1",
        ),
        ({"SLURM_JOB_ID": "17"}, "Slurm job 17", "scancel 17"),
        ({}, "", "kill "),
    ],
)
def test_a_lease_names_the_job_and_how_to_stop_it(config, tmp_path, monkeypatch, variables, job, stop):
    for name in ("RAY_JOB_CONFIG_JSON_ENV_VAR", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with only_writer(config, None):
        lease = json.loads((tmp_path / "runs" / "run" / LEASE).read_text())
    assert lease["job"] == job and lease["stop"].startswith(stop)


def test_a_fresh_start_moves_everything_but_its_lease_and_its_log_aside(config, tmp_path):
    run, remote = tmp_path / "runs" / "run", tmp_path / "remote" / "run"
    for folder in (run, remote):
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints" / "best").touch()
    with only_writer(config, remote_of(config)) as writer:
        log = run / "logs" / "driver-2.log"
        log.parent.mkdir()
        (log.parent / "driver-1.log").touch()
        with log.open("w") as file:
            writer.set_aside(kept=log)
            file.write("goes on")
        writer.lease.beat()
        writer.check()
        assert sorted(path.name for path in run.iterdir()) == [LEASE, "logs"]
        assert [path.name for path in log.parent.iterdir()] == [log.name] and log.read_text() == "goes on"
    (aside,) = (path for path in (tmp_path / "runs").iterdir() if path.name != "run")
    assert sorted(path.name for path in aside.rglob("*")) == ["best", "checkpoints", "driver-1.log", "logs"]
    assert sorted(path.name for path in (tmp_path / "remote").glob("run.*/checkpoints/*")) == ["best"]


def test_a_fresh_start_of_a_new_run_moves_nothing(config, tmp_path):
    with only_writer(config, None) as writer:
        log = writer.run_dir / "logs" / "driver-1.log"
        log.parent.mkdir()
        log.touch()
        writer.set_aside(kept=log)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]


def test_a_fresh_start_that_was_overtaken_moves_nothing(config, tmp_path):
    run = tmp_path / "runs" / "run"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").touch()
    with only_writer(config, None) as writer:
        log = run / "logs" / "driver-1.log"
        log.parent.mkdir()
        log.touch()
        (run / LEASE).unlink()
        Lease(FolderLease(run), this_process()).acquire()
        with pytest.raises(LeaseLostError):
            writer.set_aside(kept=log)
    assert (run / "metrics.jsonl").is_file() and (run / LEASE).is_file()


def test_every_start_leaves_its_configuration_and_the_latest_is_config_yaml(config, tmp_path):
    for steps in (3, 100):
        keep_config(replace(config, trainer=replace(config.trainer, steps=steps)), tmp_path)
    kept = sorted(path for path in (tmp_path / "configs").iterdir())
    assert [re.fullmatch(r"(\d{4})-\d{4}-\d\d-\d\dT\d\d-\d\d-\d\dZ\.yaml", path.name)[1] for path in kept] == [
        "0001",
        "0002",
    ]
    assert [yaml.safe_load(path.read_text())["trainer"]["steps"] for path in kept] == [3, 100]
    assert (tmp_path / "config.yaml").read_text() == kept[-1].read_text()


def test_the_configuration_of_a_run_of_an_older_version_is_kept(config, tmp_path):
    (tmp_path / "config.yaml").write_text("name: old\n")
    keep_config(config, tmp_path)
    first, second = sorted((tmp_path / "configs").iterdir())
    assert first.name.startswith("0000-") and first.read_text() == "name: old\n" and second.name.startswith("0001-")
