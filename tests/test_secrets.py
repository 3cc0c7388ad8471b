"""What leaves the process: no secret of the environment in anything written. Of a whole run: tests/test_run.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cluster.submit import runtime_env
from tests.canary import CANARY, SECRETS, holding_a_secret
from tests.rl.report.recorded_run import write_run

REPOSITORY = Path(__file__).parents[1]


def dynframe(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "rl", *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | SECRETS,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.cli
def test_no_command_says_or_writes_a_secret_of_the_environment(tmp_path):
    run = write_run(tmp_path / "run", tmp_path / "clips", steps=1)
    small = [f"cache_dir={tmp_path}/cache", "data.quickstart.train_clips=2", "data.quickstart.held_out_clips=1"]
    for command in (
        ("check", "configs/quickstart.yaml", *small),
        ("submit", "configs/quickstart.yaml", "--dry-run"),
        ("submit", "configs/quickstart.yaml", "--address", "http://127.0.0.1:9"),
        ("train", "configs/quickstart.yaml", "name=${oc.env:HF_TOKEN}"),
        ("train", "configs/quickstart.yaml", "prompt.system=${oc.env:AWS_SECRET_ACCESS_KEY}", *small),
        ("report", run),
        ("doctor", "--json"),
    ):
        said = dynframe(*command)
        assert CANARY not in said.stdout + said.stderr, command
    assert holding_a_secret(tmp_path) == []


def test_a_runtime_environment_carries_what_is_named_and_nothing_else(monkeypatch, tmp_path):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("DYNFRAME_REAL_DATA", raising=False)
    environment = runtime_env(tmp_path, 120.0)
    assert environment.keys() == {"working_dir", "excludes", "env_vars"}
    assert environment["env_vars"].keys() == {"HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM", "RAY_JOB_STOP_WAIT_TIME_S"}
    assert CANARY not in yaml.safe_dump(environment)
    monkeypatch.setenv("DYNFRAME_REAL_DATA", "/data")
    assert runtime_env(tmp_path, 120.0)["env_vars"].keys() - environment["env_vars"].keys() == {"DYNFRAME_REAL_DATA"}
