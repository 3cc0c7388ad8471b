"""Injecting: which process a title stands for, which is a target and which is not, what a damaged checkpoint is."""

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
from rl.fault_injection.inject import FaultInjector, can_lose_newest, flip_bit, newest
from rl.fault_injection.run_process import ProcessTree
from rl.fault_injection.schedule import PlannedFault
from rl.fault_injection.targets import role_of
from rl.trajectory import RunState

pytestmark = pytest.mark.thorough


@pytest.mark.parametrize(
    ("title", "role"),
    [
        ("ray::RolloutWorker", "rollout"),
        ("ray::rollout/0:RolloutWorker.__init__", "rollout"),
        ("ray::rollout/0#2:RolloutWorker.generate", "rollout"),
        ("ray::quickstart/rollout/1#1:RolloutWorker.__init__", "rollout"),
        ("ray::quickstart/reward/0, step 7", "reward"),
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
sys.stdout.write("all started\\n")
sys.stdout.flush()
sys.stdin.readline()
"""


@pytest.fixture
def injector_of(tmp_path):
    """`injector_of("ray::reward/0:RewardWorker", …)`: an injector into a run whose processes have these titles."""
    trees = []

    def start(*titles):
        command = [sys.executable, "-c", DRIVER, *titles]
        run = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        trees.append(ProcessTree(run))
        assert run.stdout.readline() == "all started\n"
        injector = FaultInjector(trees[-1], tmp_path / "run", tmp_path / "chaos.jsonl")
        injector.refresh()
        return injector, run

    yield start
    for tree in trees:
        tree.kill()


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


def test_a_fault_is_injected_into_its_target_only_and_never_twice(injector_of, tmp_path):
    injector, run = injector_of("ray::reward/0#2:RewardWorker.score", "ray::rollout/0:RolloutWorker.generate")
    injection = injector.inject(PlannedFault(7.0, "reward_stopped", 0.9))
    assert (injection.title, injection.worker) == ("ray::reward/0#2:RewardWorker.score 600", "reward/0")
    assert becomes(injection.pid, psutil.STATUS_STOPPED)
    assert injector.inject(PlannedFault(8.0, "reward_killed", 0.0)) is None  # there is no other
    others = [child for child in psutil.Process(run.pid).children() if child.pid != injection.pid]
    assert len(others) == 1 and others[0].status() != psutil.STATUS_STOPPED and run.poll() is None
    (line,) = map(json.loads, (tmp_path / "chaos.jsonl").read_text().splitlines())
    assert (line["fault_type"], line["pid"], line["due_s"]) == ("reward_stopped", injection.pid, 7.0)


def test_the_schedule_decides_which_target_is_picked(injector_of):
    injector, _ = injector_of(*(f"ray::rollout/{i}:RolloutWorker.generate" for i in range(4)))
    picked = injector.inject(PlannedFault(0.0, "rollout_killed", 0.99))
    pids = [picked.pid, *(injector.inject(PlannedFault(0.0, "rollout_killed", 0.99)).pid for _ in range(3))]
    assert pids == sorted(pids, reverse=True)


def test_a_worker_that_is_starting_is_killed_but_not_stopped(injector_of):
    injector, _ = injector_of("ray::rollout/0:RolloutWorker.__init__")
    assert injector.inject(PlannedFault(0.0, "rollout_stopped", 0.0)) is None
    assert injector.inject(PlannedFault(0.0, "rollout_killed", 0.0)).worker == "rollout/0"


def test_a_kill_in_a_push_waits_for_a_learner_that_exports(injector_of):
    idle, _ = injector_of("ray::learner/0:LearnerWorker.update", "ray::rollout/0:RolloutWorker")
    assert idle.inject(PlannedFault(0.0, "rollout_killed_in_push", 0.0)) is None
    pushing, _ = injector_of("ray::learner/0:LearnerWorker.export", "ray::rollout/0:RolloutWorker")
    injection = pushing.inject(PlannedFault(0.0, "rollout_killed_in_push", 0.0))
    assert "RolloutWorker" in injection.title and injection.note == "during a push"


def test_a_whole_run_is_killed_and_one_that_has_ended_is_no_target(injector_of):
    injector, run = injector_of("ray::reward/0:RewardWorker")
    injection = injector.inject(PlannedFault(0.0, "run_killed", 0.0))
    assert (injection.pid, injection.note, run.wait(30)) == (run.pid, "2 processes", -signal.SIGKILL)
    assert injector.inject(PlannedFault(0.0, "run_terminated", 0.0)) is None


def test_a_checkpoint_is_damaged_only_if_another_whole_one_is_left(injector_of, tmp_path):
    injector, _ = injector_of("ray::reward/0:RewardWorker")
    saved(tmp_path, 1)
    assert injector.inject(PlannedFault(0.0, "run_killed_checkpoint_damaged", 0.0)) is None
    saved(tmp_path, 2)
    assert "of step_00000002/" in injector.inject(PlannedFault(0.0, "run_killed_checkpoint_damaged", 0.3)).note
    assert CheckpointStore(tmp_path / "run").latest_valid().state.step == 1


@pytest.mark.parametrize("chance", range(20))
def test_a_checkpoint_with_any_bit_flipped_is_not_whole(tmp_path, chance):
    saved(tmp_path, 1, 2)
    assert can_lose_newest(tmp_path / "run")
    flip_bit(newest(tmp_path / "run"), random.Random(chance))
    assert not can_lose_newest(tmp_path / "run")
    assert CheckpointStore(tmp_path / "run").latest_valid().state.step == 1
