"""Host memory and seconds until R learner ranks hold their policy, and what a checkpoint takes on top.

    python benchmarks/loading.py POLICY_FOLDER --stages 1 2 3 --ranks 1 2 --reference no yes

Each rank is a process of its own, as in a run, on CPU: device memory is host memory, and everything counts. Memory is
private memory (anonymous and shared-memory pages, /proc/PID/status and smaps_rollup), so the page cache, which all
ranks read the same files through, is left out; it is given beside it as the ranks' shares of mapped files (PSS).

    processes    what R ranks hold before there is a policy: Python, torch, transformers, DeepSpeed
    peak, held   of all ranks together while the policy is loaded, and afterwards, less `processes`
    copies       the same in copies of the policy as its folder stores it
    checkpoint   the peak while a checkpoint is copied and written, less what was held before
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tables import print_conditions, print_table

SAMPLE_S = 0.02
GIB = 2**30
REFERENCE = {"no": 0.0, "yes": 0.01}  # algorithm.loss.kl_beta


@dataclass(frozen=True, slots=True)
class Case:
    """One start of a group of ranks."""

    policy: Path
    stage: int
    world_size: int
    reference: str
    dtype: str


@dataclass(slots=True)
class Measured:
    """GiB of all ranks together, and the largest rank's; seconds."""

    processes: float = 0.0
    peak: float = 0.0
    largest: float = 0.0
    held: float = 0.0
    mapped: float = 0.0
    checkpoint: float = 0.0
    loading_s: float = 0.0
    checkpoint_s: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policies", nargs="+", type=Path, help="policy folders of ours")
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2, 3], help="ZeRO stages (default 1 2 3)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="numbers of ranks (default 1 2)")
    parser.add_argument("--reference", choices=REFERENCE, nargs="+", default=["no", "yes"], help="kl_beta 0, or above")
    parser.add_argument("--dtype", default="bfloat16", help="policy.dtype (default bfloat16)")
    parser.add_argument("--scratch", type=Path, help="where checkpoints are written (default: a temporary folder)")
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        run_rank(**json.loads(options.rank))
        return
    print_conditions("torch", "transformers", "deepspeed", "safetensors", repeats=1)
    for policy in options.policies:
        stored = sum(path.stat().st_size for path in policy.glob("*.safetensors")) / GIB
        print(f"{policy.name}: {stored:.2f} GiB of weights as stored, computed in {options.dtype}\n")
        cases = [
            Case(policy, stage, ranks, reference, options.dtype)
            for stage in options.stages
            for reference in options.reference
            for ranks in options.ranks
        ]
        print_table(HEADINGS, (row(case, measure(case, options.scratch), stored) for case in cases))


HEADINGS = (
    "ZeRO",
    "reference",
    "ranks",
    "processes, GiB",
    "peak",
    "held",
    "peak, copies",
    "held, copies",
    "largest rank's peak",
    "mapped files",
    "load, s",
    "checkpoint",
    "s",
)


def row(case: Case, found: Measured, stored: float) -> tuple[object, ...]:
    """A line of the table."""
    return (
        case.stage,
        case.reference,
        case.world_size,
        f"{found.processes:.2f}",
        f"{found.peak:.2f}",
        f"{found.held:.2f}",
        f"{found.peak / stored:.1f}",
        f"{found.held / stored:.1f}",
        f"{found.largest:.2f}",
        f"{found.mapped:.2f}",
        f"{found.loading_s:.0f}",
        f"{found.checkpoint:.2f}",
        f"{found.checkpoint_s:.0f}",
    )


def measure(case: Case, scratch: Path | None) -> Measured:
    """Start the ranks, let them load and write a checkpoint, and look at them from outside."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder, started_ranks(case, Path(folder)) as ranks:
        found, memory = Measured(), Memory([rank.pid for rank in ranks])
        await_line(ranks, "imported")
        before, found.processes = memory.of_each(), sum(memory.of_each())
        start = time.perf_counter()
        with memory.watched() as peak:
            tell(ranks)
            await_line(ranks, "loaded")
        found.loading_s = time.perf_counter() - start
        found.peak = peak.together - found.processes
        found.largest = max(most - had for most, had in zip(peak.each, before, strict=True))
        held = sum(memory.of_each())
        found.held, found.mapped = held - found.processes, memory.mapped()
        start = time.perf_counter()
        with memory.watched() as peak:
            tell(ranks)
            await_line(ranks, "written")
        found.checkpoint_s = time.perf_counter() - start
        found.checkpoint = peak.together - held
        return found


@contextlib.contextmanager
def started_ranks(case: Case, folder: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """The rank processes of a case."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    told: dict[str, Any] = {
        "policy": str(case.policy.resolve()),
        "stage": case.stage,
        "world_size": case.world_size,
        "port": port,
        "kl_beta": REFERENCE[case.reference],
        "dtype": case.dtype,
        "folder": str(folder / "checkpoint"),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(case.policy), "--rank", json.dumps(told | {"rank": rank})],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(case.world_size)
    ]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


def await_line(ranks: list[subprocess.Popen[str]], expected: str) -> None:
    """Every rank has printed it; what libraries print is passed over."""
    for rank in ranks:
        for line in rank.stdout or ():
            if line.strip() == expected:
                break
        else:
            raise SystemExit(f"a rank ended before it was {expected}")


def tell(ranks: list[subprocess.Popen[str]]) -> None:
    """Let every rank go on."""
    for rank in ranks:
        print(file=rank.stdin, flush=True)


@dataclass(slots=True)
class Peak:
    """The most held so far, GiB: by all processes at one moment, and by each."""

    together: float
    each: list[float]


class Memory:
    """Private memory of processes, from outside."""

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids

    def of_each(self) -> list[float]:
        """Anonymous and shared-memory pages, GiB."""
        return [self._kib(pid, "status", ("RssAnon", "RssShmem")) / 2**20 for pid in self._pids]

    def mapped(self) -> float:
        """The processes' shares of mapped files (libraries, weights in the page cache), GiB."""
        return sum(self._kib(pid, "smaps_rollup", ("Pss_File",)) for pid in self._pids) / 2**20

    @contextlib.contextmanager
    def watched(self) -> Iterator[Peak]:
        """Look every 20 ms; complete when the block ends."""
        now = self.of_each()
        peak, done = Peak(sum(now), now), threading.Event()

        def look() -> None:
            while not done.wait(SAMPLE_S):
                now = self.of_each()
                peak.together = max(peak.together, sum(now))
                peak.each = list(map(max, peak.each, now))

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield peak
        finally:
            done.set()
            thread.join()

    @staticmethod
    def _kib(pid: int, file: str, keys: tuple[str, ...]) -> int:
        fields = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/{file}").read_text().splitlines() if ":" in line
        )
        return sum(int(fields[key].split()[0]) for key in keys)


def run_rank(
    *, policy: str, stage: int, world_size: int, rank: int, port: int, kl_beta: float, dtype: str, folder: str
) -> None:
    """One rank: says how far it is, and waits to be told to go on."""
    from dataclasses import replace

    from rl.config.algorithm import AlgorithmConfig
    from rl.config.learner import LearnerConfig
    from rl.config.policy import PolicyConfig
    from rl.learner.learner import Learner

    algorithm = AlgorithmConfig()
    algorithm = replace(algorithm, loss=replace(algorithm.loss, kl_beta=kl_beta))
    report("imported")
    learner = Learner(
        policy,
        policy=PolicyConfig(dtype=dtype),
        learner=LearnerConfig(zero_stage=stage, num_ranks=world_size),
        algorithm=algorithm,
        temperature=1.0,
        total_steps=1,
        rank=rank,
        world_size=world_size,
        master_port=port,
    )
    report("loaded")
    draft = Path(folder)
    draft.mkdir(exist_ok=True)
    learner.capture().write(draft)
    report("written")
    shutil.rmtree(draft, ignore_errors=True)


def report(line: str) -> None:
    """Tell the measuring process, and wait for its answer."""
    print(line, flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
