"""What a learner rank does beside its passes: preparing micro-batches, and the digest of what its optimizer holds.

    python benchmarks/learner_beside.py                       trajectories of the 3B configuration's size
    python benchmarks/learner_beside.py --small               does it run?

Micro-batches of one trajectory are made all before the first pass, and one ahead in a thread, in turn; a pass is as
long a wait as making a micro-batch takes, as if a GPU worked meanwhile. `peak` is what Python's allocator held at most.
The digest is of masters and moments, against their sha256.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from learner_work import COARSE, LOOK, SMALL_COARSE, SMALL_LOOK, Work, size_of
from tables import median_and_range, print_conditions, print_table

from rl.algorithm.learner_batch import LearnerBatch, collate
from rl.algorithm.packing import Limits, alone, micro_batches
from rl.learner.digest import tensors_digest, weights_digest
from rl.learner.prefetch import OneAhead

Makers = Sequence[Callable[[], LearnerBatch]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trajectories", type=int, default=8)
    parser.add_argument("--parameters", type=int, default=10**7, help="of the digest, three tensors of them")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="small clips")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print_conditions("torch", repeats=options.repeats)
    with tempfile.TemporaryDirectory() as scratch:
        blocks = (SMALL_COARSE, SMALL_LOOK) if options.small else (COARSE, LOOK)
        preparing(Work(size_of("qwen2_5_vl/tiny"), Path(scratch), *blocks), options.trajectories, options.repeats)
    digesting(options.parameters, options.repeats)


def preparing(work: Work, trajectories: int, repeats: int) -> None:
    """All before the first pass, against one ahead."""
    samples, processor = work.group(trajectories), work.processor()
    cut = micro_batches(alone(samples), Limits(1))
    makers = [partial(collate, samples, processor, batch) for batch in cut]
    pass_s = min(timed(maker) for maker in makers)
    ways = {"all before": all_before, "one ahead": one_ahead}
    found: dict[str, list[tuple[float, ...]]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, made in ways.items():
            found[way].append(measured(made(makers), pass_s))
    rows = []
    for way, runs in found.items():
        first_s, step_s, cpu_s, peak_mb = (median_and_range(column, ".3f") for column in zip(*runs, strict=True))
        rows.append((way, trajectories, first_s, step_s, cpu_s, peak_mb))
    print_table(("prepared", "trajectories", "s to the first pass", "s of the step", "CPU s", "peak MB"), rows)


def all_before(makers: Makers) -> Iterator[LearnerBatch]:
    """As until 0.3.0."""
    yield from [maker() for maker in makers]


def one_ahead(makers: Makers) -> Iterator[LearnerBatch]:
    """As the learner does."""
    with OneAhead(makers) as batches:
        yield from batches


def measured(batches: Iterator[LearnerBatch], pass_s: float) -> tuple[float, ...]:
    """Seconds to the first pass and of the step, of processor time, and the peak in MB."""
    tracemalloc.start()
    start, start_cpu, first_s = time.perf_counter(), time.process_time(), 0.0
    for batch in batches:
        first_s = first_s or time.perf_counter() - start
        del batch
        time.sleep(pass_s)
    found = first_s, time.perf_counter() - start, time.process_time() - start_cpu
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return *found, peak / 1e6


def digesting(parameters: int, repeats: int) -> None:
    """Sums against hashes."""
    state = {f"{part}": torch.randn(parameters, generator=torch.Generator().manual_seed(part)) for part in range(3)}
    ways: dict[str, Callable[[], str]] = {
        "sums (tensors_digest)": lambda: tensors_digest(state),
        "sha256 (weights_digest)": lambda: weights_digest(state.items()),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, digest in ways.items():
            began = time.process_time()
            digest()
            seconds[way].append(time.process_time() - began)
    gigabytes = sum(tensor.nbytes for tensor in state.values()) / 1e9
    rows = [
        (way, median_and_range(spent, ".3f"), f"{gigabytes / sorted(spent)[len(spent) // 2]:.1f}")
        for way, spent in seconds.items()
    ]
    print_table(("digest", "CPU s", "GB/s"), rows)


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
