"""The process of a worker: its name in Ray, where it runs, and the end of its log when it fails.

Ray writes what a worker prints, and what libraries and a user's own functions print in it, to a file on the worker's
node: worker-ID-JOB-PID.out in the session's logs folder, standard error to .err beside it. The driver's log in RUN/logs
names the file of every worker.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rl.trajectory import WorkerFailure

log = logging.getLogger(__name__)

LAST_LINES = 20
READ_TIMEOUT_S = 20.0  # to read a log on another node, the scheduling of the Ray task included
MAX_TAIL_BYTES = 64 * 2**10  # of a log that are read from its end
MAX_LINE_CHARS = 500
PID, ADDRESS = re.compile(r"\bpid[=:]\s*(\d+)"), re.compile(r"\bip[=:]\s*([\w.:]*\w)")  # in the text of Ray's errors
RAY_MARKS = (":job_id:", ":actor_name:", ":task_name:")  # lines that Ray itself writes into a worker's log


@dataclass(frozen=True, slots=True)
class ProcessLocation:
    """Where a worker's process runs, and the file that its standard output goes to."""

    node_id: str
    address: str  # of the node
    pid: int
    log: str  # path on that node; empty: unknown


@dataclass(slots=True)
class WorkerProcess:
    """One worker process as the driver knows it."""

    name: str  # of its actor: "NAME/rollout/0"
    started: ray.ObjectRef  # resolves to its location
    _location: ProcessLocation | None = field(default=None, repr=False)

    @property
    def location(self) -> ProcessLocation | None:
        """None before it has started, and if it failed to. Never blocks; logged when it is first known."""
        if self._location is None and ray.wait([self.started], timeout=0)[0]:
            try:
                self._location = ray.get(self.started, timeout=READ_TIMEOUT_S)
            except RayError:
                return None
            where = self._location
            log.debug("%s: process %d on node %s; its output: %s", self.name, where.pid, where.address, where.log)
        return self._location

    @property
    def has_answered(self) -> bool:
        """It has started, or failed to. Never blocks."""
        return self.location is not None or bool(ray.wait([self.started], timeout=0)[0])

    def failure(self, error: Exception | None = None) -> WorkerFailure:
        """Where it failed and the end of its log. Never raises, and takes READ_TIMEOUT_S at most.

        Args:
            error: what its call raised: Ray names the process in it, also of a worker that never started.
        """
        location = self.location or (_named_in(error) if error is not None else None)
        if location is None:
            return WorkerFailure(self.name, "", 0, "", ())
        path, lines = _log_of(location)
        return WorkerFailure(self.name, location.address, location.pid, path, lines)


def on_next_line(failure: WorkerFailure | None) -> str:
    """A failure as the continuation of a log message; empty without one."""
    return f"\n{failure}" if failure else ""


def own_location() -> ProcessLocation:
    """The location of the worker process that calls this."""
    node_id = ray.get_runtime_context().get_node_id()
    return ProcessLocation(node_id, ray.util.get_node_ip_address(), os.getpid(), _own_log())


def read_log(pid: int, path: str) -> tuple[str, tuple[str, ...]]:
    """Path and last lines of a worker's log on this node, standard error included; ("", ()) if there is none.

    Args:
        path: of its standard output; empty: it is looked for among the logs of this node's session, by process id.
    """
    out = Path(path) if path else _find_log(pid)
    if out is None:
        return "", ()
    streams = [file for file in (out, out.with_suffix(".err")) if file.is_file() and file.stat().st_size]
    streams.sort(key=lambda file: file.stat().st_mtime)  # what was written last comes last
    lines = [line for file in streams for line in _tail(file)]
    return str(out.with_suffix(".err") if streams and streams[-1] != out else out), tuple(lines[-LAST_LINES:])


def _log_of(location: ProcessLocation) -> tuple[str, tuple[str, ...]]:
    """Path and last lines of a log on any node; without lines where the node does not answer."""
    if location.log and location.node_id == ray.get_runtime_context().get_node_id():
        return read_log(location.pid, location.log)
    if location.node_id not in {node["NodeID"] for node in ray.nodes() if node["Alive"]}:
        return location.log, ()
    strategy = NodeAffinitySchedulingStrategy(node_id=location.node_id, soft=False)
    read = ray.remote(read_log).options(num_cpus=0, max_retries=0, scheduling_strategy=strategy)
    call = read.remote(location.pid, location.log)
    try:
        return ray.get(call, timeout=READ_TIMEOUT_S)
    except RayError:  # the node may have died as well, or be too busy
        ray.cancel(call, force=True)
        return location.log, ()


def _named_in(error: Exception) -> ProcessLocation | None:
    """The process that the text of one of Ray's errors names."""
    pid, address = PID.search(str(error)), ADDRESS.search(str(error))
    if pid is None:
        return None
    alive = [node for node in ray.nodes() if node["Alive"]]
    nodes = [node for node in alive if address and node["NodeManagerAddress"] == address[1]] or alive
    if len(nodes) != 1:
        return None
    return ProcessLocation(nodes[0]["NodeID"], nodes[0]["NodeManagerAddress"], int(pid[1]), "")


def _own_log() -> str:
    try:
        path = os.readlink("/proc/self/fd/1")
    except OSError:
        return ""
    return path if Path(path).is_file() else ""


def _find_log(pid: int) -> Path | None:
    own = _own_log()
    found = sorted(Path(own).parent.glob(f"worker-*-{pid}.out"), key=lambda file: file.stat().st_mtime) if own else []
    return found[-1] if found else None


def _tail(file: Path) -> list[str]:
    with file.open("rb") as log:
        log.seek(max(file.stat().st_size - MAX_TAIL_BYTES, 0))
        text = log.read(MAX_TAIL_BYTES).decode(errors="replace")
    lines = [line.rstrip()[:MAX_LINE_CHARS] for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith(RAY_MARKS)][-LAST_LINES:]
