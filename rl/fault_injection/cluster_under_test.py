"""The cluster of a run under test (`dynframe chaos --nodes N`), and what happens to it.

A launch gets machines of its own: the driver's, with no room for workers, and N nodes. Nodes are killed and replaced,
their network is slowed, their object store and the disk of the run filled up, and Ray's head service (GCS) is killed.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import BinaryIO

import psutil

from actors.cluster.placement import Demand, bundles_of
from rl.config.errors import ConfigError
from rl.config.installation import PROGRAM
from rl.config.run import RunConfig
from rl.fault_injection.machine_cluster import MachineCluster
from rl.fault_injection.machines import GONE_S, MIB, Machine, Machines, MachinesError
from rl.fault_injection.run_process import ProcessTree
from rl.fault_injection.schedule import KILL, PASSES_S, SLOW, FaultType
from rl.fault_injection.targets import role_of, title_of

NO_WORKERS = "no workers"  # on a node when it was struck
LOST_AFTER_S = 10.0  # a silent node counts as dead; Ray's own rule takes three times as long
SLOW_MBIT = 2.0  # per second: the quickstart's weights take half a minute
DISK_MIB = 2048  # of the run's folder
FILLED_S = 30.0  # for a store to be full
STARTED_S = 30.0  # for a driver's process to be there
POLL_S = 0.05
BALLAST = ".ballast"  # a file, of which the disk is full
OBJECTS = 8  # that a store holds; twice as many are put into it, so that all that was there makes room
FILL_STORE = """
import sys, time
import numpy, ray
ray.init(log_to_driver=False)
size, count = map(int, sys.argv[1:])
held = []
for _ in range(count):
    held.append(ray.put(numpy.zeros(size, numpy.uint8)))
    print(len(held), flush=True)
time.sleep(3600)
"""


@dataclass(frozen=True, slots=True)
class Struck:
    """What a fault has hit, and when."""

    time_s: float  # time.time()
    pid: int
    what: str  # "node/10.77.0.3", "disk", "gcs"
    note: str = ""


@dataclass(slots=True)
class _Passing:
    """A fault that ends by itself."""

    until: float  # time.monotonic()
    node: Machine | None  # None: of none
    end: Callable[[], object]


class ClusterUnderTest:
    """Machines for one launch after the other."""

    def __init__(self, config: RunConfig, nodes: int) -> None:
        """
        Args:
            config: of the run; its `output_dir` is the disk that is filled.
            nodes: beside the driver's; together they have room for the run and for one worker more each.
        """
        demand = Demand(config.rollout.num_workers, config.scoring.num_workers, config.learner.num_ranks)
        cpus = [bundle["CPU"] for bundle in bundles_of(config.placement, demand)]
        self._nodes, self._cpus = nodes, ceil(sum(cpus) / nodes) + ceil(max(cpus))
        self._disk = Path(config.output_dir)
        self._cluster: MachineCluster
        self._tree: ProcessTree
        self._pool: ThreadPoolExecutor
        self._joining: Future[Machine] | None = None
        self._passing: list[_Passing] = []
        self._ballast: BinaryIO | None = None

    @contextlib.contextmanager
    def launched(self, settings: Path, output: Path) -> Iterator[subprocess.Popen[bytes]]:
        """`dynframe train SETTINGS` on the head of a new cluster, as `run_process.launched` does it without one.

        Raises:
            MachinesError: Ray did not start on a node.
        """
        # the machines go first: a node that still joins then ends at once, and the pool does not wait for it
        with ThreadPoolExecutor(1) as self._pool, Machines() as machines, output.open("ab") as output_file:
            self._cluster = cluster = MachineCluster(machines, lost_after_s=LOST_AFTER_S)
            self._joining = None
            cluster.start_head(cpus=0)
            for _ in range(self._nodes):
                cluster.add_node(self._cpus)
            process = cluster.head.start(
                [sys.executable, "-m", PROGRAM, "train", str(settings)],
                env=os.environ | cluster.environment | {"RAY_ADDRESS": cluster.address},
                stdout=output_file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                yield process
            finally:
                with contextlib.ExitStack() as ends:  # each of them, whatever another raises
                    ends.callback(process.wait, GONE_S)
                    ends.callback(process.kill)
                    ends.callback(self._lift, math.inf)

    def tree(self, process: subprocess.Popen[bytes]) -> ProcessTree:
        """The processes of that launch; Ray's own are not waited for when the run is over.

        Raises:
            MachinesError: it ended at once.
        """
        deadline = time.monotonic() + STARTED_S
        while not (children := _children(process.pid)):  # the process itself only enters the machine
            if process.poll() is not None or time.monotonic() > deadline:
                raise MachinesError("the run's process ended at once; see output.log")
            time.sleep(POLL_S)
        roots = [machine.root.pid for machine in self._cluster.nodes]
        self._tree = ProcessTree(process, children[0].pid, roots, lambda member: bool(role_of(title_of(member))))
        return self._tree

    def refresh(self) -> None:
        """End what has lasted long enough, keep a full disk full, and let another node join for one that is lost."""
        self._lift(time.monotonic())
        if self._ballast is not None:
            _take_room(self._ballast)
        if self._joining is not None and self._joining.done():
            if self._joining.exception() is None:
                self._tree.add(self._joining.result(0).root.pid)
            self._joining = None
        if self._joining is None and len(self._up()) < self._nodes:
            self._joining = self._pool.submit(self._cluster.add_node, self._cpus)

    def strike(self, fault_type: FaultType, pick: float) -> Struck | None:
        """Do it; None: there is no target.

        Args:
            pick: in [0, 1): which node.
        """
        if fault_type.target == "gcs":
            return self._kill_gcs(is_started_again=fault_type.passes)
        if fault_type.target == "disk":
            return self._fill_disk()
        nodes = [node for node in self._up() if all(fault.node is not node for fault in self._passing)]
        if not nodes or (fault_type.action == KILL and len(self._up()) < self._nodes):
            return None
        node = nodes[int(pick * len(nodes))]
        if fault_type.action == KILL:
            return self._kill(node)
        return self._slow(node) if fault_type.action == SLOW else self._fill_store(node)

    def _up(self) -> list[Machine]:
        return [machine for machine in self._cluster.nodes[1:] if machine.is_up]

    def _kill(self, node: Machine) -> Struck:
        roles = sorted({role for child in _children(node.root.pid) if (role := role_of(title_of(child)))})
        struck = Struck(time.time(), node.root.pid, f"node/{node.address}", f"with {', '.join(roles) or NO_WORKERS}")
        node.kill()
        return struck

    def _slow(self, node: Machine) -> Struck:
        struck = Struck(time.time(), node.root.pid, f"node/{node.address}", f"sends {SLOW_MBIT:g} Mbit/s at most")
        node.limit_network(SLOW_MBIT)
        self._pass(node, lambda: node.limit_network(0))
        return struck

    def _fill_store(self, node: Machine) -> Struck | None:
        began_s, size = time.time(), self._cluster.object_store_mib * MIB // OBJECTS
        filler = node.start(
            [sys.executable, "-c", FILL_STORE, str(size), str(2 * OBJECTS)],
            env=os.environ | self._cluster.environment | {"RAY_ADDRESS": self._cluster.address},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        stored = _count_lines(filler, 2 * OBJECTS, FILLED_S)
        if stored < OBJECTS:
            _end_session(filler)
            return None
        self._pass(node, lambda: _end_session(filler))
        note = f"{stored} objects of {size // MIB} MiB in its store of {self._cluster.object_store_mib} MiB"
        return Struck(began_s, filler.pid, f"node/{node.address}", note)

    def _fill_disk(self) -> Struck | None:
        if self._ballast is not None:
            return None
        began_s, path = time.time(), self._disk / BALLAST
        self._ballast = path.open("wb")
        _take_room(self._ballast)

        def give_back() -> None:
            self._ballast.close()
            self._ballast = None
            path.unlink()

        self._pass(None, give_back)
        return Struck(began_s, 0, "disk", f"{path.stat().st_size // MIB} MiB taken, and what is freed meanwhile")

    def _kill_gcs(self, *, is_started_again: bool) -> Struck | None:
        head = self._cluster.head
        for process in _children(head.root.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name() != "gcs_server":
                    continue
                silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
                again = partial(head.start, process.cmdline(), env=process.environ(), **silent)
                struck = Struck(time.time(), process.pid, "gcs")
                process.kill()
                if is_started_again:
                    self._pass(head, again)
                return struck
        return None

    def _pass(self, node: Machine | None, end: Callable[[], object]) -> None:
        self._passing.append(_Passing(time.monotonic() + PASSES_S, node, end))

    def _lift(self, now: float) -> None:
        over = [fault for fault in self._passing if fault.until <= now]
        self._passing = [fault for fault in self._passing if fault not in over]
        with contextlib.ExitStack() as ends:
            for fault in over:
                if fault.node is None or fault.node.is_up:
                    ends.callback(fault.end)


@contextlib.contextmanager
def disk_of_its_own(folder: Path, mib: int = DISK_MIB) -> Iterator[None]:
    """A new folder that is a disk of so many MiB, in memory; afterwards what it holds is kept in a common folder.

    Raises:
        ConfigError: nothing can be mounted here.
    """
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0755", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True, timeout=60)
    if mounted.returncode:
        raise ConfigError(f"command line: --nodes: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        kept = folder.with_name(f"{folder.name}.kept")
        try:
            shutil.copytree(folder, kept, symlinks=True)
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=60)
        folder.rmdir()
        kept.rename(folder)


def _children(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def _take_room(ballast: BinaryIO) -> None:
    """All that the file's disk has left, to the page."""
    for size in (64 * MIB, MIB, mmap.PAGESIZE):
        with contextlib.suppress(OSError):
            while True:
                os.posix_fallocate(ballast.fileno(), os.fstat(ballast.fileno()).st_size, size)


def _count_lines(process: subprocess.Popen[bytes], enough: int, within_s: float) -> int:
    """How many lines it has printed, once they are enough or the time is over."""
    deadline, count = time.monotonic() + within_s, 0
    while count < enough and select.select([process.stdout], [], [], max(deadline - time.monotonic(), 0.0))[0]:
        if not (text := os.read(process.stdout.fileno(), 4096)):
            break
        count += text.count(b"\n")
    return count


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """What it has started, too."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(GONE_S)
