"""Injecting one fault: a process is killed, stopped or terminated, the newest checkpoint damaged, a node struck."""

from __future__ import annotations

import json
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from rl.checkpoint.checkpoint import open_checkpoint
from rl.checkpoint.manifest import CheckpointError
from rl.checkpoint.store import CheckpointStore
from rl.fault_injection.cluster_under_test import ClusterUnderTest
from rl.fault_injection.run_process import ProcessTree
from rl.fault_injection.schedule import DAMAGE, FAULT_TYPES, STOP, TERMINATE, FaultType, PlannedFault
from rl.fault_injection.targets import ProcessFinder, method_of, title_of

INJECTIONS = "chaos.jsonl"  # one line per injected fault
STARTING = ("__init__", "start", "address", "load")  # methods; a worker stopped in one has minutes to start, by design


@dataclass(frozen=True, slots=True)
class Injection:
    """A fault as it was injected."""

    time_s: float  # time.time()
    fault_type: str
    pid: int
    title: str  # of the process at that moment: which worker it is, and what it was doing
    worker: str = ""  # "rollout/0"; empty if its title never showed it; "node/10.77.0.3", "disk", "gcs"
    note: str = ""
    due_s: float = 0.0  # when it was planned, in seconds of steps; it waits until there is a target


class FaultInjector:
    """Injects planned faults into one launch of a run. A fault without a target is not injected, and may be retried."""

    def __init__(self, tree: ProcessTree, run_dir: Path, log: Path, cluster: ClusterUnderTest | None = None) -> None:
        self._tree, self._run_dir, self._log, self._cluster = tree, run_dir, log, cluster
        self._processes = ProcessFinder(tree)
        self._injected: set[psutil.Process] = set()  # never a target again: it may be stopped, not gone

    def refresh(self) -> None:
        """See which processes there are, and end what has lasted long enough."""
        self._processes.refresh()
        if self._cluster is not None:
            self._cluster.refresh()

    def inject(self, planned: PlannedFault) -> Injection | None:
        """Inject the fault and log it; None if there is no target."""
        fault_type = FAULT_TYPES[planned.fault_type]
        inject = self._into_run if fault_type.ends_the_run else self._into_process
        if fault_type.needs_nodes:
            inject = self._into_cluster
        injection = inject(planned, fault_type)
        if injection is not None:
            append_json_line(self._log, injection)
        return injection

    def _into_process(self, planned: PlannedFault, fault_type: FaultType) -> Injection | None:
        targets = [one for one in self._processes.of_role(fault_type.target) if one not in self._injected]
        if fault_type.action == STOP:
            targets = [one for one in targets if method_of(one) not in STARTING]
        if not targets or (fault_type.during and not self._processes.learner_is_in(fault_type.during)):
            return None
        target = targets[int(planned.pick * len(targets))]
        try:
            title, now = title_of(target), time.time()
            target.suspend() if fault_type.action == STOP else target.kill()
        except psutil.NoSuchProcess:
            return None
        self._injected.add(target)
        note, worker = "during a push" if fault_type.during else "", self._processes.worker_name(target)
        return Injection(now, planned.fault_type, target.pid, title, worker, note, planned.after_s)

    def _into_cluster(self, planned: PlannedFault, fault_type: FaultType) -> Injection | None:
        struck = self._cluster and self._cluster.strike(fault_type, planned.pick)
        if struck is None:
            return None
        title, due_s = struck.what.replace("/", " "), planned.after_s
        return Injection(struck.time_s, planned.fault_type, struck.pid, title, struck.what, struck.note, due_s)

    def _into_run(self, planned: PlannedFault, fault_type: FaultType) -> Injection | None:
        driver = self._processes.driver
        if driver is None or (fault_type.action == DAMAGE and not can_lose_newest(self._run_dir)):
            return None
        title, note, now = title_of(driver), "", time.time()
        if fault_type.action == TERMINATE:
            driver.terminate()
        else:
            note = f"{self._tree.kill()} processes"
            if fault_type.action == DAMAGE:
                note += f", {flip_bit(newest(self._run_dir), random.Random(planned.pick))}"
        return Injection(now, planned.fault_type, driver.pid, title, "", note, planned.after_s)


def newest(run_dir: Path) -> Path | None:
    """The newest checkpoint, whole or not."""
    return next(iter(CheckpointStore(run_dir).published().values()), None)


def can_lose_newest(run_dir: Path) -> bool:
    """Whether the newest checkpoint is whole, and another one beside it."""
    folders = list(CheckpointStore(run_dir).published().values())
    return len(folders) > 1 and _is_whole(folders[0]) and any(_is_whole(folder) for folder in folders[1:])


def flip_bit(checkpoint: Path, chance: random.Random) -> str:
    """Change one bit of one file of a checkpoint; returns which byte of which file."""
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.stat().st_size]
    path = files[chance.randrange(len(files))]
    offset = chance.randrange(path.stat().st_size)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << chance.randrange(8)]))
    return f"byte {offset} of {path.relative_to(checkpoint.parent)}"


def append_json_line(path: Path, record: Any) -> None:
    """A dataclass as a JSON line at the end of a file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(record)) + "\n")


def _is_whole(folder: Path) -> bool:
    try:
        open_checkpoint(folder)
    except (CheckpointError, OSError):  # or it was removed as too old meanwhile
        return False
    return True
