"""A whole run that loses its workers, one after the other, and ends with the same bits as one without faults.

Real processes of a real run are killed and stopped; with `rollout.deterministic` the run's fingerprints, step by step,
must be those of the uninterrupted run.
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

    def worker(self, kind):
        """The first worker of a kind in the run's own process tree."""
        found = []

        def found_some():
            tree = psutil.Process(self.process.pid).children(recursive=True)
            found[:] = [process for process in tree if f"ray::{kind}" in title(process)]
            return found

        self._until(found_some, kind)
        return min(found, key=lambda process: process.pid)

    def ended(self, timeout_s=300):
        code = self.process.wait(timeout=timeout_s)
        return code

    def output(self):
        self._log.seek(0)
        return self._log.read()

    def _until(self, happened, what, timeout_s=240):
        deadline = time.monotonic() + timeout_s
        while not happened():
            assert self.process.poll() is None and time.monotonic() < deadline, f"no {what}\n{self.output()[-3000:]}"
            time.sleep(0.02)  # between two looks at files and processes of another program


def title(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def fingerprints(steps):
    """Of prompts, tokens, log-probs, rewards, advantages, optimizer and weights, in one."""
    return {step: line["state/hash"] for step, line in steps.items()}


def test_a_run_that_loses_every_kind_of_worker_equals_the_uninterrupted_run(proof_home, uninterrupted):
    assert read_faults(proof_home / "straight") == []
    run = Training(proof_home, "faults")
    run.reach(1)
    run.worker("RolloutWorker").send_signal(signal.SIGKILL)
    run.reach(2)
    run.worker("RewardWorker").send_signal(signal.SIGKILL)
    run.reach(3)
    run.worker("LearnerWorker").send_signal(signal.SIGKILL)
    run.reach(4)
    run.worker("RolloutWorker").send_signal(signal.SIGSTOP)

    assert run.ended() == 0, run.output()[-3000:]
    assert fingerprints(run.steps()) == fingerprints(uninterrupted)
    kinds = {fault["kind"] for fault in read_faults(run.folder)}
    assert {"worker_died", "learner_lost", "worker_hung"} <= kinds
    assert "State:\tT (stopped)" in run.output() or "T (stopped)" in run.output()


def test_a_stopped_run_saves_what_it_has_and_continues_from_there(proof_home, uninterrupted):
    run = Training(proof_home, "stopped", "trainer.save_every=0")
    run.reach(1)
    run.process.send_signal(signal.SIGTERM)
    assert run.ended(timeout_s=60) == 128 + signal.SIGTERM
    assert "stopped by SIGTERM; saved: the same command goes on from there" in run.output()
    done = len(run.steps())
    assert 1 <= done <= STEPS
    assert [path.name for path in (run.folder / "checkpoints").glob("step_*")] == [f"step_{done:08d}"]

    again = Training(proof_home, "stopped", "trainer.save_every=0")
    assert again.ended() == 0, again.output()[-3000:]
    assert fingerprints(again.steps()) == fingerprints(uninterrupted)
    assert f"resuming at step {done} from" in again.output()


def test_a_second_stop_signal_ends_the_run_at_once(proof_home, uninterrupted):
    run = Training(proof_home, "stopped-twice")
    run.reach(1)
    os.killpg(run.process.pid, signal.SIGSTOP)  # both signals are pending when it continues
    run.process.send_signal(signal.SIGINT)
    run.process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    os.killpg(run.process.pid, signal.SIGCONT)
    assert run.ended(timeout_s=60) in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    assert time.monotonic() - started < 10
