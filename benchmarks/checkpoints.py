"""How long a step stands still for a checkpoint, and what writing it costs the work beside it.

    python benchmarks/checkpoints.py --mib 4 400 --repeats 9

One rank's part as a run has it, `--mib` in all: float32 masters, two moments and the policy, a quarter each; copied and
written by `rl.checkpoint.snapshot`, published by `rl.checkpoint.saver` with manifest, hashes and fsync.

    blocked     what the run waits for: the draft, and the copy in memory
    at once     the same checkpoint copied, written and published before the run goes on
    published   from the copy until the checkpoint is there, beside the run
    beside      matrix multiplications per second in the same process during that time, as a share of their number alone
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import save_file
from tables import median_and_range, print_conditions, print_table
from torch import Tensor

from rl.checkpoint.saver import Contents, Saver
from rl.checkpoint.snapshot import CapturedState, Snapshot
from rl.checkpoint.store import CheckpointStore
from rl.trajectory import RunState, WrittenFile

SIZE = 512  # of the matrices


class Rank:
    """Tensors as large as a learner's, copied by the caller and written by a thread, as in actors/learner.py."""

    def __init__(self, mib: int) -> None:
        quarter = mib * 2**18 // 4
        self._state = {f"group_0.{name}": torch.randn(quarter) for name in ("master", "exp_avg", "exp_avg_sq")}
        self._policy = torch.randn(quarter)
        self._thread = ThreadPoolExecutor(1)

    def save(self, draft: Path) -> Future[list[WrittenFile]]:
        return self._thread.submit(self.capture().write, draft)

    def capture(self) -> Snapshot:
        copied = {name: tensor.to("cpu", copy=True) for name, tensor in self._state.items()}
        policy = self._policy.to("cpu", copy=True)
        return Snapshot(
            CapturedState("rank_0.safetensors", copied, {"steps": "1"}), lambda folder: _export(policy, folder)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, nargs="+", default=[4, 400])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--alone-s", type=float, default=2.0, help="seconds of multiplying alone (default 2)")
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure; default: the temporary one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print_conditions("torch", "safetensors", repeats=options.repeats)
    rows = []
    for mib in options.mib:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            rows.append(measure(mib, Path(folder), options.repeats, options.alone_s))
    print_table(("MiB", "blocked s", "at once s", "published s", "beside"), rows)


def measure(mib: int, folder: Path, repeats: int, alone_s: float) -> tuple[str, ...]:
    """One row; the two ways take turns, so that both meet the same neighbours."""
    rank, store = Rank(mib), CheckpointStore(folder / "beside", keep=1)
    blocked, at_once, published, beside = [], [], [], []
    with Saver(store, timeout_s=600.0, max_failed=1) as saver:
        for step in range(repeats):
            at_once.append(_at_once(rank, CheckpointStore(folder / "at_once", keep=1), step))
            deadline = time.perf_counter() + alone_s
            alone = _multiplications_per_s(lambda deadline=deadline: time.perf_counter() > deadline)
            start = time.perf_counter()
            saver.save(rank.save, Contents(RunState(step, step, seed=0), ""))
            blocked.append(time.perf_counter() - start)
            beside.append(_multiplications_per_s(lambda step=step: step in store.published()) / alone)
            saver.flush()
            published.append(saver.poll()["save/write_seconds"])
    seconds = (median_and_range(numbers, ".3f") for numbers in (blocked, at_once, published))
    return (str(mib), *seconds, median_and_range(beside, ".2f"))


def _at_once(rank: Rank, store: CheckpointStore, step: int) -> float:
    start = time.perf_counter()
    draft = store.begin(step)
    rank.capture().write(draft)
    store.commit(draft, RunState(step, step, seed=0), "")
    return time.perf_counter() - start


def _multiplications_per_s(is_over: Callable[[], bool]) -> float:
    a, count, start = torch.randn(SIZE, SIZE), 0, time.perf_counter()
    while count == 0 or not is_over():
        a @ a
        count += 1
    return count / (time.perf_counter() - start)


def _export(policy: Tensor, folder: Path) -> list[Path]:
    folder.mkdir()
    save_file({"weight": policy}, folder / "model.safetensors")
    return [folder / "model.safetensors"]


if __name__ == "__main__":
    main()
