"""A whole run that loses its workers, one after the other, and ends with the same bits as one without faults.

Real processes of a real run are killed and stopped. No step or trajectory may be lost or repeated; where
`rollout.deterministic` can be kept, the run's fingerprints must be those of the uninterrupted run, step by step.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rl.fault_injection.run_process import ProcessTree
from rl.tracking.faults import read_faults
from tests.calibration import within
from tests.proof_run import QUICKSTART, SMALL, STEPS, violations
from tests.terminal import strange_lines

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.deepspeed]

REPOSITORY = Path(__file__).parents[1]


class Training:
    """A run in a process of its own."""

    def __init__(self, home, name, refusal, *overrides, log=""):
        self.folder = home / name
        arguments = [str(QUICKSTART), *SMALL, f"trainer.steps={STEPS}", "trainer.save_every=2"]
        arguments += [f"rollout.deterministic={not refusal}"]
        arguments += [f"name={name}", f"output_dir={home}", "placement.dashboard=false"]
        self._log = (home / f"{log or name}.log").open("a+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rl", "train", *arguments, *overrides],
            cwd=REPOSITORY,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def hold_lease(self):
        """Return when the run's folder is its own."""
        self._until((self.folder / "lease.json").exists, "lease")

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


@pytest.fixture(scope="module")
def after_faults(proof_home, proof_overrides, uninterrupted, refusal):
    """A run of which an engine stopped answering, and which then lost the other one, a reward worker and a learner."""
    run = Training(proof_home, "faults", refusal, *proof_overrides)
    run.reach(1)  # an engine has work then, with a lag as well
    run.worker("RolloutWorker").send_signal(signal.SIGSTOP)
    run.reach(2)
    run.worker("RolloutWorker").send_signal(signal.SIGKILL)
    run.worker("RewardWorker").send_signal(signal.SIGKILL)
    run.reach(3)
    run.worker("LearnerWorker").send_signal(signal.SIGKILL)
    assert run.ended() == 0, run.output()[-3000:]
    return run


def test_a_run_that_loses_every_kind_of_worker_loses_and_repeats_nothing(lag, after_faults):
    kinds = {fault["kind"] for fault in read_faults(after_faults.folder)}
    assert {"worker_died", "learner_lost"} <= kinds and kinds & {"worker_hung", "push_interrupted"}
    if lag == 0 or "worker_hung" in kinds:  # else it had done its work, and was missed at the push
        logs = "".join(path.read_text() for path in (after_faults.folder / "logs").iterdir())
        assert "T (stopped)" in logs and "T (stopped)" not in after_faults.output()  # the stacks of the one that hung
    assert violations(after_faults.folder, lag) == []


def test_the_terminal_names_each_worker_that_failed_once_with_cause_node_log_and_the_end_of_it(after_faults):
    output = after_faults.output()
    assert strange_lines(output) == []
    failed = [fault for fault in read_faults(after_faults.folder) if fault.get("failure")]
    assert len(failed) >= 3
    for fault in failed:
        failure = fault["failure"]
        named = f"{failure['worker']}, process {failure['pid']} on node {failure['node']}; its log: {failure['log']}"
        (place,) = (found.end() for found in re.finditer(re.escape(named), output))
        count = len(failure["last_lines"])
        assert [line[4:] for line in output[place:].splitlines()[1 : count + 1]] == failure["last_lines"]
        assert count <= 20 and fault["cause"] in output


def test_a_run_that_loses_every_kind_of_worker_equals_the_uninterrupted_run(
    exact, proof_home, after_faults, uninterrupted
):
    assert read_faults(proof_home / "straight") == []
    assert fingerprints(after_faults.steps()) == fingerprints(uninterrupted)


@pytest.fixture(scope="module")
def stopped_and_resumed(proof_home, proof_overrides, uninterrupted, refusal):
    """A run that was started twice, stopped by SIGTERM to all of its process group, checked, and started again.

    So Slurm, `timeout`, `docker stop` and a terminal's Ctrl-C signal: the process, and its group.
    """
    run = Training(proof_home, "stopped", refusal, "trainer.save_every=0", *proof_overrides)
    run.hold_lease()
    twice = Training(proof_home, "stopped", refusal, "trainer.save_every=0", *proof_overrides, log="twice")
    assert twice.ended(within(60)) == 2
    (line,) = (line for line in twice.output().splitlines() if "error:" in line)
    assert f"this run is being written by process {run.process.pid} on " in line
    assert f"`kill {run.process.pid}`" in line
    run.reach(1)
    tree = ProcessTree(run.process)
    tree.refresh()
    run.process.send_signal(signal.SIGTERM)
    os.killpg(run.process.pid, signal.SIGTERM)
    assert run.ended(timeout_s=60) == 128 + signal.SIGTERM
    assert tree.wait_gone(60.0) == [] and not (run.folder / "lease.json").exists()
    assert "stopped by SIGTERM; saved: the same command goes on from there" in run.output()
    done = len(run.steps())
    assert 1 <= done <= STEPS
    assert [path.name for path in (run.folder / "checkpoints").glob("step_*")] == [f"step_{done:08d}"]
    again = Training(proof_home, "stopped", refusal, "trainer.save_every=0", *proof_overrides)
    assert again.ended() == 0, again.output()[-3000:]
    assert f"resuming at step {done} from" in again.output()
    return again


def test_a_stopped_run_saves_what_it_has_and_continues_from_there(lag, stopped_and_resumed):
    assert violations(stopped_and_resumed.folder, lag) == []


def test_a_stopped_run_equals_the_uninterrupted_run(exact, stopped_and_resumed, uninterrupted):
    assert fingerprints(stopped_and_resumed.steps()) == fingerprints(uninterrupted)


@pytest.mark.soak  # a run of its own; what a second signal does is told in tests/rl/run/test_stop_signals.py
def test_a_second_stop_signal_ends_the_run_at_once(proof_home, proof_overrides, uninterrupted, refusal):
    run = Training(proof_home, "stopped-twice", refusal, *proof_overrides)
    run.reach(1)
    os.killpg(run.process.pid, signal.SIGSTOP)  # both signals are pending when it continues
    run.process.send_signal(signal.SIGINT)
    run.process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    os.killpg(run.process.pid, signal.SIGCONT)
    assert run.ended(timeout_s=60) in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    assert time.monotonic() - started < 10
