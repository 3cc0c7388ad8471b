"""Detects stalled workers and dumps their stacks."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.worker.process import ProcessLocation

log = logging.getLogger(__name__)

DUMP_TIMEOUT_S = 20.0  # to inspect a process on its node, the scheduling of the Ray task included
MAX_DUMP_CHARS = 20_000


class StallDetector:
    """Detects a progress counter that stops changing while there is work."""

    def __init__(self, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeout_s, self._clock = timeout_s, clock
        self._progress, self._changed_s = -1, clock()

    def reset(self) -> None:
        """Restart the timeout: the worker is idle, or has just been given work."""
        self._changed_s = self._clock()

    def extend(self, seconds: float) -> None:
        """Do not count `seconds` in which the driver itself was blocked."""
        self._changed_s = min(self._changed_s + seconds, self._clock())

    def update(self, progress: int) -> None:
        """Record the worker's progress counter; a change restarts the timeout."""
        if progress != self._progress:
            self._progress, self._changed_s = progress, self._clock()

    @property
    def is_stalled(self) -> bool:
        """The counter has not changed within the timeout."""
        return self._clock() - self._changed_s > self._timeout_s


def dump_stacks(location: ProcessLocation) -> str:
    """Python stacks of every thread of a worker, read from outside: the process itself may not respond.

    Never raises and waits DUMP_TIMEOUT_S at most; where there is no dump, the text says why.
    """
    strategy = NodeAffinitySchedulingStrategy(node_id=location.node_id, soft=False)
    inspect = ray.remote(describe_process).options(num_cpus=0, max_retries=0, scheduling_strategy=strategy)
    call = inspect.remote(location.pid)
    try:
        return ray.get(call, timeout=DUMP_TIMEOUT_S)
    except Exception as error:  # the node may be gone, or hang as well
        ray.cancel(call, force=True)
        return f"process {location.pid} could not be inspected: {type(error).__name__}"


def describe_process(pid: int) -> str:
    """State and Python stacks of a process on this node."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return f"process {pid} is gone"
    state = next((line for line in status.splitlines() if line.startswith("State:")), "State: unknown")
    spy = Path(sys.executable).with_name("py-spy")
    program = str(spy) if spy.exists() else shutil.which("py-spy")
    if program is None:
        return f"process {pid}: {state}; py-spy is not installed, so its stacks are unknown"
    command = [program, "dump", "--nonblocking", "--pid", str(pid)]
    try:
        dump = subprocess.run(command, capture_output=True, text=True, timeout=DUMP_TIMEOUT_S / 2, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"process {pid}: {state}; py-spy failed: {type(error).__name__}"
    return f"process {pid}: {state}\n{(dump.stdout or dump.stderr)[:MAX_DUMP_CHARS]}"
