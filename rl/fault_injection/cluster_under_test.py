"""The cluster of a run under test (`dynframe chaos --nodes N`), and what happens to it.

A launch gets machines of its own: the driver's, with no room for workers, and N nodes. Nodes are killed and replaced,
their network is slowed, their object store and the disk of the run filled up, and Ray's head service (GCS) is killed.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import psutil

from actors.cluster.placement import Demand, bundles_of
from rl.config.errors import ConfigError
from rl.config.installation import PROGRAM
from rl.config.run import RunConfig
from rl.fault_injection.machine_cluster import MachineCluster
from rl.fault_injection.machines import GONE_S, MIB, Machine, Machines, why_not
from rl.fault_injection.run_process import ProcessTree
from rl.fault_injection.schedule import KILL, PASSES_S, SLOW, FaultType
from rl.fault_injection.targets import role_of, title_of

NO_WORKERS = "no workers"  # on a node when it was struck
LOST_AFTER_S = 10.0  # a silent node counts as dead; Ray's own rule takes three times as long
SLOW_MBIT = 2.0  # per second: the quickstart's weights take half a minute
DISK_MIB = 2048  # of the run's folder
FILLED_S = 30.0  # for a store to be full
STARTED_S = 30.0  # for a driver's process to be there
FILL_STORE = """
import sys, time
import numpy, ray
ray.init(log_to_driver=False)
held = []
for _ in range(16):  # twice what a store holds: all that was there must make room
    held.append(ray.put(numpy.zeros(int(sys.argv[1]) // 8, numpy.uint8)))
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


class ClusterUnderTest:
    """Machines for one launch after the other."""

    def __init__(self, config: RunConfig, nodes: int) -> None:
        """
        Raises:
            ConfigError: no machines can be made here.
        """
        if reason := why_not():
            raise ConfigError(f"command line: --nodes: no machines of namespaces can be made here: {reason}")
        demand = Demand(config.rollout.num_workers, config.scoring.num_workers, config.learner.num_ranks)
        cpus = [bundle["CPU"] for bundle in bundles_of(config.placement, demand)]
        self._nodes, self._cpus = nodes, ceil(sum(cpus) / nodes) + ceil(max(cpus))
        self._disk = Path(config.output_dir)
        self._cluster: MachineCluster | None = None
        self._tree: ProcessTree | None = None
        self._passing: list[tuple[float, Machine | None, Callable[[], None]]] = []  # until when, of whom, what ends it

    @contextlib.contextmanager
    def launched(self, settings: Path, output: Path) -> Iterator[subprocess.Popen[bytes]]:
        """`dynframe train SETTINGS` on the head of a new cluster, as `run_process.launched` does it without one.

        Raises:
            MachinesError: Ray did not start on a node.
        """
        with Machines() as machines, output.open("ab") as output_file:
            self._cluster = cluster = MachineCluster(machines, lost_after_s=LOST_AFTER_S)
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
                self._lift(lambda *_: True)
                process.kill()
                process.wait(GONE_S)
                self._cluster = self._tree = None

    def tree(self, process: subprocess.Popen[bytes]) -> ProcessTree:
        """The processes of that launch; Ray's own are not waited for when the run is over.

        Raises:
            ConfigError: it ended at once.
        """
        assert self._cluster is not None
        deadline = time.monotonic() + STARTED_S
        while not (children := _children(process.pid)):  # the process itself only enters the machine
            if process.poll() is not None or time.monotonic() > deadline:
                raise ConfigError("the run's process ended at once; see output.log")
            time.sleep(0.05)
        roots = [machine.root.pid for machine in self._cluster.nodes]
        self._tree = ProcessTree(process, children[0].pid, roots, lambda member: bool(role_of(title_of(member))))
        return self._tree

    def refresh(self) -> None:
        """End what has lasted long enough."""
        now = time.monotonic()
        self._lift(lambda until, _: until <= now)

    def strike(self, fault_type: FaultType, pick: float) -> Struck | None:
        """Do it; None: there is no target.

        Args:
            pick: in [0, 1): which node.
        """
        assert self._cluster is not None
        if fault_type.target == "gcs":
            return self._kill_gcs(self._cluster.head)
        if fault_type.target == "disk":
            return self._fill_disk()
        busy = [machine for _, machine, _ in self._passing]
        nodes = [machine for machine in self._cluster.nodes[1:] if machine.is_up and machine not in busy]
        if not nodes:
            return None
        node = nodes[int(pick * len(nodes))]
        if fault_type.action == KILL:
            return self._kill(node)
        return self._slow(node) if fault_type.action == SLOW else self._fill_store(node)

    def _kill(self, node: Machine) -> Struck:
        """Another node joins in its place."""
        roles = sorted({role for child in _children(node.root.pid) if (role := role_of(title_of(child)))})
        struck = Struck(time.time(), node.root.pid, f"node/{node.address}", f"with {', '.join(roles) or NO_WORKERS}")
        node.kill()
        added = self._cluster.add_node(self._cpus)
        self._tree.add(added.root.pid)
        return struck

    def _slow(self, node: Machine) -> Struck:
        node.limit_network(SLOW_MBIT)
        self._pass(node, lambda: node.limit_network(0))
        return Struck(time.time(), node.root.pid, f"node/{node.address}", f"sends {SLOW_MBIT:g} Mbit/s at most")

    def _fill_store(self, node: Machine) -> Struck:
        size = str(self._cluster.object_store_mib * MIB)
        environment = os.environ | self._cluster.environment | {"RAY_ADDRESS": self._cluster.address}
        filler = node.start(
            [sys.executable, "-c", FILL_STORE, size],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        objects = _count_lines(filler, 16, FILLED_S)
        self._pass(node, lambda: _end_session(filler))
        note = f"{objects} objects of {self._cluster.object_store_mib // 8} MiB put into its store"
        return Struck(time.time(), filler.pid, f"node/{node.address}", note)

    def _fill_disk(self) -> Struck | None:
        ballast = self._disk / ".ballast"
        if ballast.exists():
            return None
        with ballast.open("wb") as file, contextlib.suppress(OSError):  # the run takes some of it meanwhile
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(self._disk).free)
        self._pass(None, ballast.unlink)
        return Struck(time.time(), 0, "disk", f"{ballast.stat().st_size // MIB} MiB taken")

    @staticmethod
    def _kill_gcs(head: Machine) -> Struck | None:
        for process in _children(head.root.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name() == "gcs_server":
                    struck = Struck(time.time(), process.pid, "gcs")
                    process.kill()
                    return struck
        return None

    def _pass(self, machine: Machine | None, end: Callable[[], None]) -> None:
        self._passing.append((time.monotonic() + PASSES_S, machine, end))

    def _lift(self, is_over: Callable[[float, Machine | None], bool]) -> None:
        for entry in [entry for entry in self._passing if is_over(*entry[:2])]:
            self._passing.remove(entry)
            _, machine, end = entry
            if machine is None or machine.is_up:
                end()


@contextlib.contextmanager
def disk_of_its_own(folder: Path, mib: int = DISK_MIB) -> Iterator[None]:
    """A new folder that is a disk of so many MiB, in memory; afterwards what it holds is kept in a common folder.

    Raises:
        ConfigError: nothing can be mounted here.
    """
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)], capture_output=True, text=True, timeout=60
    )
    if mounted.returncode:
        raise ConfigError(f"command line: --nodes: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        kept = folder.with_name(f"{folder.name}.kept")
        shutil.copytree(folder, kept, symlinks=True)
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=60)
        folder.rmdir()
        kept.rename(folder)


def _children(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


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
