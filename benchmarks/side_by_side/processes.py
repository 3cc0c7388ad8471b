"""Contestants that take steps when told to, real runs, and the processor time of all their processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
LOOK_S = 0.02  # between two looks whether a run has written a step
ENGINE = {  # of TRL's processes; ours set their own
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_PLUGINS": "dynframe",  # and no other; TRL's environment has none
}


@dataclass(frozen=True, slots=True)
class Step:
    """What one step took, and did."""

    cpu_s: float  # of all processes
    wall_s: float
    done: Mapping[str, float]  # means over trajectories, and what of the processor's time each stage took


class Process:
    """A contestant: see answering.py."""

    def __init__(self, command: Sequence[str | Path], folder: Path, python_path: str, log: Path) -> None:
        """
        Args:
            log: everything it prints but its answers.
        """
        environment = os.environ | ENGINE | {"PYTHONPATH": python_path, "OMP_NUM_THREADS": "1"}
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                list(map(str, command)),
                cwd=folder,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                start_new_session=True,  # its end is no end of this process's group
            )

    def wait_ready(self) -> None:
        """Return when it can take its first step."""
        self._answer()

    def step(self) -> Step:
        """Have it take one."""
        cpu_s, start_s = tree_cpu_s(self._process.pid), time.perf_counter()
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        done = self._answer()
        return Step(tree_cpu_s(self._process.pid) - cpu_s, time.perf_counter() - start_s, done)

    def close(self) -> None:
        """End it."""
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            told = "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])
            raise RuntimeError(f"{self._log.stem} ended with exit code {self._process.wait()}:\n{told}")
        return json.loads(line)


def real_run(
    checkout: Path, python_path: str, arguments: Sequence[str], folder: Path, *, steps: int, warm_up: int
) -> list[Step]:
    """`dynframe train`: every step after the warm-up, from one line of metrics.jsonl to the next.

    Args:
        checkout: whose code runs, with the packages of this environment.
        folder: of the run, which must not be there yet.
    """
    metrics, log = folder / "metrics.jsonl", folder.with_suffix(".log")
    own = [f"name={folder.name}", f"output_dir={folder.parent}", f"trainer.steps={steps}", "trainer.eval_tasks=0"]
    with log.open("wb") as output:
        run = subprocess.Popen(
            [sys.executable, "-m", "rl", "train", *arguments, *own, f"trainer.save_every={steps}"],
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": python_path, "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=output,
        )
    marks: list[tuple[float, float]] = []
    while run.poll() is None:
        written = _steps_in(metrics)
        if len(written) > len(marks):
            marks += [(tree_cpu_s(run.pid), time.perf_counter())] * (len(written) - len(marks))
        time.sleep(LOOK_S)
    if run.returncode:
        told = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise RuntimeError(f"{folder.name} ended with exit code {run.returncode}:\n{told}")
    lines = _steps_in(metrics)
    took = [(cpu - cpu_0, wall - wall_0) for (cpu_0, wall_0), (cpu, wall) in pairwise(marks)]
    # the last step is followed by the final save: it is not counted
    return [Step(cpu, wall, line) for (cpu, wall), line in zip(took, lines[1:], strict=False)][warm_up - 1 : -1]


def tree_cpu_s(pid: int) -> float:
    """Processor time of a process, and of all below it that are still there or have been waited for."""
    here = psutil.Process(pid)
    return sum(_cpu_s(process) for process in (here, *here.children(recursive=True)))


@contextmanager
def all_closed(processes: Mapping[str, Process]) -> Iterator[None]:
    """Every contestant ended in the end; more may come meanwhile."""
    try:
        yield
    finally:
        for process in processes.values():
            process.close()


def _cpu_s(process: psutil.Process) -> float:
    try:
        spent = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return spent.user + spent.system + spent.children_user + spent.children_system


def _steps_in(metrics: Path) -> list[dict[str, float]]:
    if not metrics.exists():
        return []
    whole = metrics.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
    return [line for line in map(json.loads, whole) if "seconds/step" in line]
