"""A whole run as a process: started in a session and with a Ray of its own, watched and killed from outside."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

from actors.cluster.session import end_with_parent
from rl.config.errors import ConfigError
from rl.config.installation import PROGRAM

KILL_TIMEOUT_S = 30.0  # for killed processes to be gone
POLL_S = 0.2  # between two looks at processes that are waited for


class ProcessesRemainError(RuntimeError):
    """Processes of a run could not be killed."""


@contextlib.contextmanager
def launched(settings: Path, output: Path, command: str = "train") -> Iterator[subprocess.Popen[bytes]]:
    """`dynframe COMMAND SETTINGS`, its output appended to a file; whatever is left of it at exit is killed.

    So is the run when this process is killed itself.
    """
    # Ray's sockets want a short path; a Ray that is killed leaves its session behind
    with (
        tempfile.TemporaryDirectory(prefix="dynframe-", ignore_cleanup_errors=True) as ray_folder,
        output.open("ab") as output_file,
    ):
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        process = subprocess.Popen(
            [sys.executable, "-m", PROGRAM, command, str(settings)],
            env=environment | {"RAY_TMPDIR": ray_folder},
            stdin=subprocess.DEVNULL,
            stdout=output_file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process only; the run is then killed below
            preexec_fn=end_with_parent if threading.current_thread() is threading.main_thread() else None,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                kill_process_tree(process)


class ProcessTree:
    """A process and its descendants, as far as `refresh` has seen them.

    A descendant that is reparented between two refreshes stays known; one that is started and reparented between two
    is missed.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        pid: int | None = None,
        beside: Sequence[int] = (),
        must_end: Callable[[psutil.Process], bool] = lambda _: True,
    ) -> None:
        """
        Args:
            pid: of the run itself, where `process` only started it.
            beside: process ids of other roots.
            must_end: what is waited for once the run is over; others belong to what it ran on.
        """
        self._process, self._must_end = process, must_end
        self.pid = process.pid if pid is None else pid
        self._seen: dict[psutil.Process, None] = {}  # in order of appearance
        for root in (self.pid, *beside):
            self.add(root)

    def add(self, pid: int) -> None:
        """Another root."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._seen[psutil.Process(pid)] = None

    @property
    def has_ended(self) -> bool:
        """The root process is gone; descendants may be left."""
        return self._process.poll() is not None

    def refresh(self) -> list[psutil.Process]:
        """Read the process table; returns all living members, the longest known first."""
        children: dict[int, list[psutil.Process]] = {}
        for process in psutil.process_iter(["ppid"]):  # one reading of the process table, however many there are
            children.setdefault(process.info["ppid"], []).append(process)
        members = self.alive()
        for member in members:  # grows as it is walked
            members += [child for child in children.get(member.pid, ()) if child not in self._seen]
            self._seen |= dict.fromkeys(children.get(member.pid, ()))
        return [member for member in members if is_alive(member)]

    def alive(self) -> list[psutil.Process]:
        """Known members that are alive."""
        return [member for member in self._seen if is_alive(member)]

    def kill(self) -> int:
        """SIGKILL all members at once, so that none can react to the loss of another; returns how many there were.

        They are stopped first: a stopped process starts nothing new, so the last refresh finds every member.

        Raises:
            ProcessesRemainError: some are still there after half a minute.
        """
        with contextlib.suppress(psutil.NoSuchProcess):  # before looking for the others, which takes time
            psutil.Process(self.pid).suspend()
        stopped: dict[psutil.Process, None] = {}
        while fresh := [member for member in self.refresh() if member not in stopped]:
            for member in fresh:
                stopped[member] = None
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.suspend()
        for member in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        self._process.kill()  # what only started the run has been stopped with it, and waits
        self._process.wait(timeout=KILL_TIMEOUT_S)
        if remaining := [member.pid for member in wait_gone(self.alive(), KILL_TIMEOUT_S)]:
            raise ProcessesRemainError(f"processes {remaining} of the run could not be killed")
        return len(stopped)

    def wait_gone(self, timeout_s: float) -> list[int]:
        """Wait until no member is left that must end; returns the process ids of those that are."""
        return [member.pid for member in wait_gone([one for one in self.alive() if self._must_end(one)], timeout_s)]


def kill_process_tree(process: subprocess.Popen[bytes]) -> int:
    """SIGKILL a process and all its descendants at once; see ProcessTree.kill."""
    return ProcessTree(process).kill()


def wait_gone(processes: Sequence[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Wait until none of the processes is alive; returns those that are.

    A zombie that nobody reaps, as in a container without an init process, is not waited for.
    """
    deadline = time.monotonic() + timeout_s
    while alive := [process for process in processes if is_alive(process)]:
        if (left_s := deadline - time.monotonic()) <= 0:
            return alive
        psutil.wait_procs(alive, timeout=min(POLL_S, left_s))
    return []


def is_alive(process: psutil.Process) -> bool:
    """Not gone, and no zombie: a killed parent's children may have no process that reaps them."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def folder_beside_runs(output_dir: str, prefix: str) -> Path:
    """A new folder for the runs of an experiment.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=prefix, dir=output_dir)).absolute()
    except OSError as error:
        raise ConfigError(f"output_dir: cannot write {output_dir}: {error.strerror}") from error
