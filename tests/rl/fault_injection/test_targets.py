"""Striking: whom a title means, what is struck and what is not, and what a damaged checkpoint looks like."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest

from rl.checkpoint.store import CheckpointStore
from rl.fault_injection.run_process import Family
from rl.fault_injection.schedule import Due
from rl.fault_injection.targets import Striker, can_lose_newest, flip_byte, newest, role_of
from rl.trajectory import RunState


@pytest.mark.parametrize(
    ("title", "role"),
    [
        ("ray::RolloutWorker", "rollout"),
        ("ray::rollout/0:RolloutWorker.__init__", "rollout"),
        ("ray::rollout/0#2:RolloutWorker.generate", "rollout"),
        ("ray::reward/1:RewardWorker.score", "reward"),
        ("ray::learner/0#1:LearnerWorker.export", "learner"),
        ("/usr/bin/python -m envs.video.decode_process 7 pyav 1 2", "decoder"),
        ("ray::TraceWorker", ""),
        ("ray::IDLE", ""),
        ("python -m rl train settings.yaml", ""),
    ],
)
def test_a_process_is_known_by_its_title(title, role):
    assert role_of(title) == role


DRIVER = """
import subprocess, sys
workers = [subprocess.Popen([title, "600"], executable="/bin/sleep") for title in sys.argv[1:]]
sys.stdout.write("all are here\\n")
sys.stdout.flush()
sys.stdin.readline()
"""


@pytest.fixture
def striker_of(tmp_path):
    """`striker_of("ray::reward/0:RewardWorker", …)`: whoever strikes a run whose processes have these titles."""
    families = []

    def start(*titles):
        command = [sys.executable, "-c", DRIVER, *titles]
        run = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        families.append(Family(run))
        assert run.stdout.readline() == "all are here\n"
        striker = Striker(families[-1], tmp_path / "run", tmp_path / "chaos.jsonl")
        striker.look()
        return striker, run

    yield start
    for family in families:
        family.kill()


def saved(tmp_path, *steps):
    store = CheckpointStore(tmp_path / "run", keep=9)
    for step in steps:
        store.commit(store.begin(step), RunState(step, step, 0), "seed: 0")


def becomes(pid, status, within_s=30.0):
    """Signals arrive in their own time."""
    deadline = time.monotonic() + within_s
    while psutil.Process(pid).status() != status and time.monotonic() < deadline:
        os.sched_yield()
    return psutil.Process(pid).status() == status


def test_only_whom_it_is_meant_for_is_struck_and_never_twice(striker_of, tmp_path):
    striker, run = striker_of("ray::reward/0#2:RewardWorker.score", "ray::rollout/0:RolloutWorker.generate")
    strike = striker.strike(Due(7.0, "reward_stopped", 0.9))
    assert (strike.title, strike.worker) == ("ray::reward/0#2:RewardWorker.score 600", "reward/0")
    assert becomes(strike.pid, psutil.STATUS_STOPPED)
    assert striker.strike(Due(8.0, "reward_killed", 0.0)) is None  # there is no other
    others = [child for child in psutil.Process(run.pid).children() if child.pid != strike.pid]
    assert len(others) == 1 and others[0].status() != psutil.STATUS_STOPPED and run.poll() is None
    (line,) = map(json.loads, (tmp_path / "chaos.jsonl").read_text().splitlines())
    assert (line["kind"], line["pid"], line["due_s"]) == ("reward_stopped", strike.pid, 7.0)


def test_who_is_picked_follows_from_the_schedule(striker_of):
    striker, _ = striker_of(*(f"ray::rollout/{i}:RolloutWorker.generate" for i in range(4)))
    picked = striker.strike(Due(0.0, "rollout_killed", 0.99))
    pids = [picked.pid, *(striker.strike(Due(0.0, "rollout_killed", 0.99)).pid for _ in range(3))]
    assert pids == sorted(pids, reverse=True)


def test_a_worker_that_is_starting_is_killed_but_not_stopped(striker_of):
    striker, _ = striker_of("ray::rollout/0:RolloutWorker.__init__")
    assert striker.strike(Due(0.0, "rollout_stopped", 0.0)) is None
    assert striker.strike(Due(0.0, "rollout_killed", 0.0)).worker == "rollout/0"


def test_a_kill_in_a_push_waits_for_a_learner_that_exports(striker_of):
    idle, _ = striker_of("ray::learner/0:LearnerWorker.update", "ray::rollout/0:RolloutWorker")
    assert idle.strike(Due(0.0, "rollout_killed_in_push", 0.0)) is None
    pushing, _ = striker_of("ray::learner/0:LearnerWorker.export", "ray::rollout/0:RolloutWorker")
    strike = pushing.strike(Due(0.0, "rollout_killed_in_push", 0.0))
    assert "RolloutWorker" in strike.title and strike.note == "during a push"


def test_a_whole_run_is_killed_and_one_that_has_ended_is_not(striker_of):
    striker, run = striker_of("ray::reward/0:RewardWorker")
    strike = striker.strike(Due(0.0, "run_killed", 0.0))
    assert (strike.pid, strike.note, run.wait(30)) == (run.pid, "2 processes", -signal.SIGKILL)
    assert striker.strike(Due(0.0, "run_terminated", 0.0)) is None


def test_a_checkpoint_is_damaged_only_if_another_whole_one_is_left(striker_of, tmp_path):
    striker, _ = striker_of("ray::reward/0:RewardWorker")
    saved(tmp_path, 1)
    assert striker.strike(Due(0.0, "run_killed_checkpoint_damaged", 0.0)) is None
    saved(tmp_path, 2)
    assert "of step_00000002/" in striker.strike(Due(0.0, "run_killed_checkpoint_damaged", 0.3)).note
    assert CheckpointStore(tmp_path / "run").latest_valid().state.step == 1


@pytest.mark.parametrize("chance", range(20))
def test_wherever_the_byte_is_the_checkpoint_is_not_whole(tmp_path, chance):
    saved(tmp_path, 1, 2)
    assert can_lose_newest(tmp_path / "run")
    flip_byte(newest(tmp_path / "run"), random.Random(chance))
    assert not can_lose_newest(tmp_path / "run")
    assert CheckpointStore(tmp_path / "run").latest_valid().state.step == 1
