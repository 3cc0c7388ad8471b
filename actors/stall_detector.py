"""Is somebody who ought to be working getting on? And if not, what is he doing?"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

log = logging.getLogger(__name__)

DUMP_S = 20.0  # to look at a process on its node, the task that does so included
LONGEST_DUMP = 20_000  # characters


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where a worker's process runs."""

    node_id: str
    pid: int


class ProgressWatch:
    """Notices when a number stops changing although there is work."""

    def __init__(self, patience_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience_s, self._clock = patience_s, clock
        self._last, self._since = -1, clock()

    def rest(self) -> None:
        """There is nothing to do: patience begins anew."""
        self._since = self._clock()

    def excuse(self, seconds: float) -> None:
        """The one who watches was away for so long: it does not count."""
        self._since = min(self._since + seconds, self._clock())

    def saw(self, progress: int) -> None:
        """What the worker has done so far, as a number that grows."""
        if progress != self._last:
            self._last, self._since = progress, self._clock()

    @property
    def is_stalled(self) -> bool:
        """Nothing has changed for longer than patience lasts."""
        return self._clock() - self._since > self._patience_s


def stacks_of(where: Whereabouts) -> str:
    """What every thread of a process is doing, asked of the operating system: the process itself may have stopped.

    Never raises and never waits for long: where nothing can be found out, that is what it says.
    """
    strategy = NodeAffinitySchedulingStrategy(node_id=where.node_id, soft=False)
    look = ray.remote(describe_process).options(num_cpus=0, max_retries=0, scheduling_strategy=strategy)
    call = look.remote(where.pid)
    try:
        return ray.get(call, timeout=DUMP_S)
    except Exception as error:  # the node may be gone, or as stuck as the process
        ray.cancel(call, force=True)
        return f"process {where.pid} could not be looked at: {type(error).__name__}"


def describe_process(pid: int) -> str:
    """State and Python stacks of a process on this machine."""
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
        dump = subprocess.run(command, capture_output=True, text=True, timeout=DUMP_S / 2, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"process {pid}: {state}; py-spy failed: {type(error).__name__}"
    return f"process {pid}: {state}\n{(dump.stdout or dump.stderr)[:LONGEST_DUMP]}"
