"""What leaves the process: no secret of the environment in anything written, and nobody outside is listened to."""

import ipaddress
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from cluster.submit import runtime_env
from tests.rl.report.recorded_run import write_run
from tests.test_run import SMALL

REPOSITORY = Path(__file__).parents[1]
CANARY = "canary-2f9d1c7e"
SECRETS = {
    name: f"{CANARY}-{name}"
    for name in (
        *("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
        *("AWS_SESSION_TOKEN", "GOOGLE_API_KEY", "OPENAI_API_KEY", "DATABASE_URL", "MY_PASSWORD"),
    )
}


def dynframe(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "rl", *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | SECRETS,
        capture_output=True,
        text=True,
        timeout=300,
    )


def holding_a_secret(*folders):
    """Files under the folders in which the canary stands."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert files
    return [str(path) for path in files if CANARY.encode() in path.read_bytes()]


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


@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.deepspeed
def test_a_run_listens_on_loopback_only_and_writes_no_secret(tmp_path):
    arguments = ["train", *SMALL, "name=quiet", "trainer.steps=1", "placement.dashboard=true"]
    arguments += [f"output_dir={tmp_path}/runs", f"cache_dir={tmp_path}/cache", "cold_start.steps=2"]
    log, listening = tmp_path / "said.txt", {}
    with log.open("wb") as said:
        running = subprocess.Popen(
            [sys.executable, "-m", "rl", *arguments],
            cwd=REPOSITORY,
            env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | SECRETS,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        try:
            while running.poll() is None:
                listening |= sockets_of(running.pid)
                time.sleep(0.5)  # between two looks; the run itself is what is waited for
        finally:
            running.kill()
    assert running.returncode == 0, log.read_text()[-3000:]
    assert any("raylet" in name for name in listening.values()) and len(listening) > 5
    assert {address: name for address, name in listening.items() if not is_loopback(address[0])} == {}
    assert holding_a_secret(tmp_path) == []


def sockets_of(pid):
    """Who of a process and all it has started listens where: (address, port) -> name."""
    found = {}
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return found
    for process in processes:
        try:
            sockets = [s for s in process.net_connections("inet") if s.status == psutil.CONN_LISTEN]
            found |= {tuple(socket.laddr): process.name() for socket in sockets}
        except psutil.Error:
            continue
    return found


def is_loopback(address):
    parsed = ipaddress.ip_address(address)
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback
