"""Broken videos put to the reader as training puts clips to it, and what came of each.

python -m tests.envs.fuzzing 5000 clip.mp4 other.webm          # a long search by hand; prints a count per outcome
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from envs.video.decode_memory import MIB, resident_bytes
from envs.video.decode_process import DecodeProcess
from envs.video.reader import VideoError
from tests.envs.video.mutants import Mutant, mutants

SIZE_HW = (28, 56)
MEMORY_BYTES = 512 * MIB
STORE_BYTES = 32 * MIB
DECODERS = 2


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one broken file led to."""

    mutant: str
    kind: str  # "frames", or the class of the refusal
    problem: str
    seconds: float
    child_bytes: int  # resident, after it


def try_all(files: Iterable[Mutant], folder: Path, timeout_s: float, backend: str = "pyav") -> list[Outcome]:
    """Each through a real decoding process: described, looked over whole, then in a window."""
    free: SimpleQueue[DecodeProcess] = SimpleQueue()
    processes = [DecodeProcess(backend, STORE_BYTES, timeout_s, MEMORY_BYTES) for _ in range(DECODERS)]
    for process in processes:
        free.put(process)

    def attempt(mutant: Mutant) -> Outcome:
        path = folder / mutant.name
        path.write_bytes(mutant.content)
        process, started = free.get(), time.perf_counter()
        try:
            kind, problem = _attempt(process, str(path))
        finally:
            seconds, resident = time.perf_counter() - started, resident_bytes(process.pid) if process.pid else 0
            free.put(process)
        path.unlink()
        return Outcome(mutant.name, kind, problem, seconds, resident)

    try:
        with ThreadPoolExecutor(DECODERS) as pool:
            return list(pool.map(attempt, files))
    finally:
        for process in processes:
            process.close()


def _attempt(process: DecodeProcess, path: str) -> tuple[str, str]:
    try:
        clip = process.describe(path)
        require_clock(clip.times_s_N, clip.duration_s)
        whole = tuple(np.linspace(0, clip.duration_s, 6))
        window = tuple(np.linspace(0.4, 0.6, 3) * clip.duration_s)
        for times_s in (whole, window):
            require_frames(process.frames(path, times_s, SIZE_HW), times_s, clip.duration_s)
    except VideoError as error:
        return type(error).__name__, error.problem
    return "frames", ""


def require_clock(times_s_N: np.ndarray, duration_s: float) -> None:
    """Times start at 0, do not go back and end before the clip does."""
    assert times_s_N[0] == 0 and (np.diff(times_s_N) >= 0).all(), times_s_N
    assert np.isfinite(duration_s) and 0 < duration_s < 1e7 and times_s_N[-1] < duration_s, duration_s


def require_frames(
    answer: tuple[np.ndarray, tuple[float, ...], int], asked_s: Sequence[float], duration_s: float
) -> None:
    """As many pictures as were asked for, of the size asked for, in order and within the clip."""
    pixels_THWC, shown_s, damaged = answer
    assert pixels_THWC.shape == (len(asked_s), *SIZE_HW, 3) and pixels_THWC.dtype == np.uint8
    assert (np.diff(shown_s) >= 0).all() and shown_s[0] >= 0 and shown_s[-1] <= duration_s, shown_s
    assert 0 <= damaged <= max(1, len(asked_s) // 10)


def main(count: int, clips: Sequence[str], seed: int = 0, timeout_s: float = 10.0, backend: str = "pyav") -> None:
    """Print how many ended how, and one example of each."""
    each = -(-count // len(clips))
    files = (one for clip in clips for one in mutants(Path(clip).name, Path(clip).read_bytes(), each, seed))
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        outcomes = try_all(files, Path(folder), timeout_s, backend)
    seconds = sorted(outcome.seconds for outcome in outcomes)
    sys.stdout.write(
        f"{len(outcomes)} mutants in {time.perf_counter() - started:.0f} s, median {seconds[len(seconds) // 2]:.3f} s, "
        f"slowest {seconds[-1]:.2f} s, largest child {max(o.child_bytes for o in outcomes) // MIB} MiB\n"
    )
    examples = {outcome.kind: outcome for outcome in outcomes}
    for kind, number in Counter(outcome.kind for outcome in outcomes).most_common():
        sys.stdout.write(f"{number:6d}  {kind:20s} {examples[kind].mutant}: {examples[kind].problem}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
