"""A whole run that loses its workers, one after the other, and comes out as if nothing had happened.

Real processes of a real run are killed and stopped; with `rollout.deterministic` the run's fingerprints, step by step,
must be those of the run that was left alone.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rl.faults import read_faults

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.deepspeed]

REPOSITORY = Path(__file__).parents[1]
STEPS = 5
SMALL = (
    "configs/quickstart.yaml",
    "data.quickstart.train_clips=8",
    "data.quickstart.held_out_clips=2",
    "cold_start.steps=60",
    "rollout.num_workers=2",
    "rollout.tasks_per_step=2",
    "rollout.group_size=4",
    "rollout.deterministic=true",
    "rollout.stall_timeout_s=5",
    "video.decode_timeout_s=4",
    "learner.timeout_s=60",
    f"trainer.steps={STEPS}",
    "trainer.save_every=2",
    "trainer.eval_tasks=0",
    "placement.dashboard=false",
)


class Training:
    """A run in a process of its own."""

    def __init__(self, home, name, *overrides):
        self.folder = home / "runs" / name
        arguments = [*SMALL, f"name={name}", f"output_dir={home}/runs", f"cache_dir={home}/cache", *overrides]
        self._log = (home / f"{name}.log").open("a+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rl", "train", *arguments],
            cwd=REPOSITORY,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def reach(self, step):
        """Return when so many steps are in the log."""
        self._until(lambda: len(self.steps()) >= step, f"step {step}")

    def steps(self):
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else ()
        found = [json.loads(line) for line in lines if line.endswith("}")]
        return {line["step"]: line for line in found if "seconds/step" in line}

    def fingerprints(self):
        return {step: line["state/hash"] for step, line in self.steps().items()}

    def victim(self, kind):
        """The first worker of a kind in the run's own process tree."""
        found = []

        def look():
            tree = psutil.Process(self.process.pid).children(recursive=True)
            found[:] = [process for process in tree if f"ray::{kind}" in title(process)]
            return found

        self._until(look, kind)
        return min(found, key=lambda process: process.pid)

    def ended(self, timeout_s=300):
        code = self.process.wait(timeout=timeout_s)
        return code

    def said(self):
        self._log.seek(0)
        return self._log.read()

    def _until(self, happened, what, timeout_s=240):
        deadline = time.monotonic() + timeout_s
        while not happened():
            assert self.process.poll() is None and time.monotonic() < deadline, f"no {what}\n{self.said()[-3000:]}"
            time.sleep(0.02)  # between two looks at files and processes of another program


def title(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def left_alone(home):
    run = Training(home, "left-alone")
    assert run.ended() == 0, run.said()[-3000:]
    assert read_faults(run.folder) == []
    return run.fingerprints()


def test_whoever_is_lost_the_run_is_the_same(home, left_alone):
    run = Training(home, "struck")
    run.reach(1)
    run.victim("RolloutWorker").send_signal(signal.SIGKILL)
    run.reach(2)
    run.victim("RewardWorker").send_signal(signal.SIGKILL)
    run.reach(3)
    run.victim("LearnerWorker").send_signal(signal.SIGKILL)
    run.reach(4)
    run.victim("RolloutWorker").send_signal(signal.SIGSTOP)

    assert run.ended() == 0, run.said()[-3000:]
    assert run.fingerprints() == left_alone  # prompts, tokens, log-probs, rewards, advantages, optimizer, weights
    kinds = {fault["kind"] for fault in read_faults(run.folder)}
    assert {"worker_died", "learner_lost", "worker_hung"} <= kinds
    assert "State:\tT (stopped)" in run.said() or "T (stopped)" in run.said()


def test_a_run_that_is_asked_to_stop_saves_what_it_has_and_goes_on_from_there(home, left_alone):
    run = Training(home, "stopped", "trainer.save_every=0")
    run.reach(1)
    run.process.send_signal(signal.SIGTERM)
    assert run.ended(timeout_s=60) == 128 + signal.SIGTERM
    assert "stopped by SIGTERM; saved: the same command goes on from there" in run.said()
    done = len(run.steps())
    assert 1 <= done <= STEPS
    assert [path.name for path in (run.folder / "checkpoints").glob("step_*")] == [f"step_{done:08d}"]

    again = Training(home, "stopped", "trainer.save_every=0")
    assert again.ended() == 0, again.said()[-3000:]
    assert again.fingerprints() == left_alone
    assert f"resumed at step {done}" in again.said()


def test_asked_twice_it_ends_at_once(home, left_alone):
    run = Training(home, "impatient")
    run.reach(1)
    os.killpg(run.process.pid, signal.SIGSTOP)  # so that both come while it is in the middle of something
    run.process.send_signal(signal.SIGINT)
    run.process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    os.killpg(run.process.pid, signal.SIGCONT)
    assert run.ended(timeout_s=60) in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    assert time.monotonic() - started < 10
