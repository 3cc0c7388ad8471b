"""One launch of a run under test, seen from outside: its processes, the steps it reports, how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

from rl.fault_injection.artifacts import BY_ITSELF, HUNG, STOPPED
from rl.fault_injection.run_process import ProcessTree

POLL_S = 0.25  # between two polls of a run under way
REFRESH_S = 1.0  # between two readings of the process table
EXIT_S = 60.0  # for the processes of a launch to end after it
TAIL_BYTES = 65_536  # of metrics.jsonl, in which its last line lies


class RunningLaunch:
    """One launch of a run."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        metrics: Path,
        grace_s: float,
        timeout_s: float,
        tree: ProcessTree | None = None,
    ) -> None:
        """
        Args:
            metrics: the run's metrics.jsonl.
            tree: the launch's processes; by default those below `process`.
            grace_s: within which the run has promised to stop.
            timeout_s: without a step, after which the launch counts as hung and is killed.
        """
        self._process, self._metrics, self._grace_s, self._timeout_s = process, metrics, grace_s, timeout_s
        self._started_s = time.time()
        self._progress = (0, time.monotonic())  # the last step, and when it was seen first
        self._refreshed = 0.0
        self.tree = tree or ProcessTree(process)
        self.first_step_s = 0.0
        self.ended_s = 0.0
        self.ended = BY_ITSELF
        self.stop_s = 0.0

    @property
    def exit_code(self) -> int:
        """Of a launch that has ended."""
        return self._process.returncode

    def poll(self) -> bool:
        """Wait a moment; returns whether the run goes on. One that hangs is killed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=POLL_S)
        if time.monotonic() - self._refreshed > REFRESH_S:
            self.tree.refresh()
            self._refreshed = time.monotonic()
        step, time_s = last_step(self._metrics)
        if not self.first_step_s and time_s >= self._started_s:
            self.first_step_s = time_s
        if step != self._progress[0]:
            self._progress = (step, time.monotonic())
        if self._process.poll() is None and time.monotonic() - self._progress[1] > self._timeout_s:
            self.tree.kill()
            self.ended = HUNG
        if self._process.poll() is not None:
            self.ended_s = self.ended_s or time.time()
            return False
        return True

    def run_to_end(self) -> None:
        """Wait until it ends."""
        while self.poll():
            pass

    def stop(self) -> None:
        """Send SIGTERM, and wait until it has stopped."""
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(self.tree.pid, signal.SIGTERM)
        self.wait_stopped(time.time())

    def wait_ended(self, limit_s: float) -> bool:
        """Whether it ends by itself within that time; it is killed if it does not."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=limit_s)
        has_ended = self._process.poll() is not None
        if not has_ended:
            self.tree.kill()
        self.ended_s = time.time()
        return has_ended

    def wait_stopped(self, requested_s: float) -> None:
        """Wait until it has stopped after a SIGTERM sent at `requested_s`; it is killed if it does not."""
        self.ended = STOPPED
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2 * self._grace_s + EXIT_S)
        if self._process.poll() is None:
            self.tree.kill()
        self.ended_s, self.stop_s = time.time(), time.time() - requested_s


def last_step(metrics: Path) -> tuple[int, float]:
    """The last step that a run has reported, and when; (0, 0) before the first."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            tail = file.read().splitlines()
    except OSError:
        return 0, 0.0
    for text in reversed(tail):
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            return int(line["step"]), float(line["time_s"])
    return 0, 0.0
