"""A Ray of a run's own in a process session of its own: signals to the run's process group do not reach it.

Slurm, `timeout`, `docker stop` and a terminal's Ctrl-C signal the whole group. Ray's node processes would end at once
by that, and with them the learners whose state is still to be saved. Both ends are here: RaySession in the run, `main`
in the process that starts Ray.

| end | ends |
|---|---|
| the run calls `stop` | Ray is shut down in order |
| the run is killed | the kernel kills the other end, and the kernel kills Ray's processes with that (Linux) |
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

log = logging.getLogger(__name__)

START_TIMEOUT_S = 180.0  # Ray gives up by itself before
START_ATTEMPTS = 3  # Ray waits 30 s for its own node, which a busy machine does not always keep
STOP_TIMEOUT_S = 20.0
PR_SET_PDEATHSIG = 1  # prctl(2)


class RaySessionError(RuntimeError):
    """Ray did not start; the message is Ray's."""


class RaySession:
    """Ray's node processes, running until `stop`; `address` is what ray.init joins them by.

    Args:
        options: of ray.init in the other process; JSON.
    Raises:
        RaySessionError: Ray did not start.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        for attempts_left in reversed(range(START_ATTEMPTS)):
            try:
                self._start(options)
                break
            except RaySessionError as error:
                if not attempts_left or "timed out" not in str(error):
                    raise
                log.warning("Ray did not start: %s; it is tried again", error)

    def _start(self, options: Mapping[str, Any]) -> None:
        # the kernel's notice goes out when the starting *thread* ends: elsewhere than in the main thread, far too early
        tied = threading.current_thread() is threading.main_thread()
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, json.dumps(dict(options)), "tied" if tied else "untied"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            self.address = self._read_address()
        except BaseException:
            self._kill()
            raise

    def stop(self) -> None:
        """Shut Ray down; killed if that takes too long."""
        self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._kill()
        self._process.stdout.close()

    def _read_address(self) -> str:
        ready, _, _ = select.select([self._process.stdout], [], [], START_TIMEOUT_S)
        answer = json.loads(self._process.stdout.readline() or b"{}") if ready else {}
        if "address" not in answer:
            raise RaySessionError(answer.get("error", f"no answer within {START_TIMEOUT_S:g} s; its log is /tmp/ray"))
        return answer["address"]

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(STOP_TIMEOUT_S)


def main() -> None:
    """Start Ray, tell its address, and keep it until the other end closes the pipe."""
    parent = os.getppid()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else prints here is no answer
    if sys.argv[2] == "tied":
        end_with_parent()
        if os.getppid() != parent:
            return  # too late to be told
    import ray

    try:
        started = ray.init(**json.loads(sys.argv[1]))
    except Exception as error:  # Ray raises this very class when its processes do not come up in time
        print_answer(answers, error=" ".join(str(error).split()) or type(error).__name__)
        raise SystemExit(1) from None
    print_answer(answers, address=started.address_info["address"])
    sys.stdin.read()  # ends when the pipe is closed, or whoever held it has ended
    ray.shutdown()


def end_with_parent() -> None:
    """The kernel kills this process when the thread that started it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def print_answer(answers: Any, **answer: str) -> None:
    """One line of JSON to the other end."""
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
