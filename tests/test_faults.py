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

from rl.tracking.faults import read_faults
from tests.proof_run import QUICKSTART, SMALL, STEPS

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.deepspeed]

REPOSITORY = Path(__file__).parents[1]


class Training:
    """A run in a process of its own."""

    def __init__(self, home, name, *overrides):
        self.folder = home / name
        arguments = [str(QUICKSTART), *SMALL, f"trainer.steps={STEPS}", "trainer.save_every=2"]
        arguments += [f"name={name}", f"output_dir={home}", f"cache_dir={home}/cache", "placement.dashboard=false"]
        self._log = (home / f"{name}.log").open("a+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rl", "train", *arguments, *overrides],
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


def fingerprints(steps):
    """Of prompts, tokens, log-probs, rewards, advantages, optimizer and weights, in one."""
    return {step: line["state/hash"] for step, line in steps.items()}


def test_whoever_is_lost_the_run_is_the_same(proof_home, left_alone):
    assert read_faults(proof_home / "straight") == []
    run = Training(proof_home, "struck")
    run.reach(1)
    run.victim("RolloutWorker").send_signal(signal.SIGKILL)
    run.reach(2)
    run.victim("RewardWorker").send_signal(signal.SIGKILL)
    run.reach(3)
    run.victim("LearnerWorker").send_signal(signal.SIGKILL)
    run.reach(4)
    run.victim("RolloutWorker").send_signal(signal.SIGSTOP)

    assert run.ended() == 0, run.said()[-3000:]
    assert fingerprints(run.steps()) == fingerprints(left_alone)
    kinds = {fault["kind"] for fault in read_faults(run.folder)}
    assert {"worker_died", "learner_lost", "worker_hung"} <= kinds
    assert "State:\tT (stopped)" in run.said() or "T (stopped)" in run.said()


def test_a_run_that_is_asked_to_stop_saves_what_it_has_and_goes_on_from_there(proof_home, left_alone):
    run = Training(proof_home, "stopped", "trainer.save_every=0")
    run.reach(1)
    run.process.send_signal(signal.SIGTERM)
    assert run.ended(timeout_s=60) == 128 + signal.SIGTERM
    assert "stopped by SIGTERM; saved: the same command goes on from there" in run.said()
    done = len(run.steps())
    assert 1 <= done <= STEPS
    assert [path.name for path in (run.folder / "checkpoints").glob("step_*")] == [f"step_{done:08d}"]

    again = Training(proof_home, "stopped", "trainer.save_every=0")
    assert again.ended() == 0, again.said()[-3000:]
    assert fingerprints(again.steps()) == fingerprints(left_alone)
    assert f"resumed at step {done}" in again.said()


def test_asked_twice_it_ends_at_once(proof_home, left_alone):
    run = Training(proof_home, "impatient")
    run.reach(1)
    os.killpg(run.process.pid, signal.SIGSTOP)  # so that both come while it is in the middle of something
    run.process.send_signal(signal.SIGINT)
    run.process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    os.killpg(run.process.pid, signal.SIGCONT)
    assert run.ended(timeout_s=60) in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    assert time.monotonic() - started < 10
