"""Processor time of a run, by the kind of its processes: what its start took, and what a step takes."""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

MARK = "DYNFRAME_BENCHMARK"  # a variable that every process of the run inherits, Ray's daemons included
ROLES = {"RolloutWorker": "engines", "LearnerWorker": "learners", "RewardWorker": "rewards", "TraceWorker": "traces"}
OFTEN_S = 0.1

Seconds = Counter[str]  # of processor time, by the kind of process


@dataclass
class ProcessTimes:
    """Processor seconds when the first step's line was written, and when the last one's was."""

    first: Seconds = field(default_factory=Counter)
    last: Seconds = field(default_factory=Counter)
    steps: int = 0  # lines of steps

    def per_step(self) -> Seconds:
        """Of a step after the first."""
        return Counter({kind: (self.last[kind] - self.first[kind]) / max(1, self.steps - 1) for kind in self.last})


@contextmanager
def watched(metrics: Path) -> Iterator[ProcessTimes]:
    """Watch what is started in the body; `metrics` is the metrics.jsonl that the run will write."""
    os.environ[MARK], times, done = uuid.uuid4().hex, ProcessTimes(), threading.Event()
    watcher = threading.Thread(target=_watch, args=(metrics, times, done))
    watcher.start()
    try:
        yield times
    finally:
        done.set()
        watcher.join()
        del os.environ[MARK]


def _watch(metrics: Path, times: ProcessTimes, done: threading.Event) -> None:
    kinds: dict[int, str] = {}
    seconds: dict[int, float] = {}
    strangers: set[int] = set()
    while not done.wait(OFTEN_S):
        for pid in set(psutil.pids()) - strangers:
            if not _take(pid, kinds, seconds):
                strangers.add(pid)
        steps = _steps(metrics)
        if steps > times.steps:
            by_kind: Seconds = Counter()
            for pid, spent in seconds.items():
                by_kind[kinds[pid]] += spent
            times.first = times.first or by_kind
            times.last, times.steps = by_kind, steps


def _take(pid: int, kinds: dict[int, str], seconds: dict[int, float]) -> bool:
    """Read a process's times, if it is of the run; one that has ended keeps its last ones."""
    try:
        process = psutil.Process(pid)
        if pid not in seconds and process.environ().get(MARK) != os.environ[MARK]:
            return False
        title = " ".join(process.cmdline())
        spent = process.cpu_times()
    except psutil.Error:
        return pid in seconds
    if kinds.get(pid, "Ray") == "Ray":  # workers get their title late, and others with every step
        driver = "driver" if "-m rl train" in title else "Ray"
        kinds[pid] = next((role for name, role in ROLES.items() if name in title), driver)
    seconds[pid] = spent.user + spent.system
    return True


def _steps(metrics: Path) -> int:
    if not metrics.is_file():
        return 0
    whole = metrics.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
    return sum("seconds/step" in json.loads(line) for line in whole)
