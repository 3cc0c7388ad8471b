"""GPUs by name, and how a run's workers share them. No torch.

Legend: a share is what a worker asks of a GPU: 1, or a part of one.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rl.config.errors import require
from rl.config.trainer import engines_beside

GPUS: Mapping[str, float] = {  # GiB that the driver reports
    "l4-24gb": 22.5,
    "a10-24gb": 22.5,
    "rtx4090-24gb": 24.0,
    "a100-40gb": 40.0,
    "l40s-48gb": 45.0,
    "a100-80gb": 80.0,
    "h100-80gb": 79.6,
    "h200-141gb": 140.4,
    "b200-180gb": 179.0,
}
USABLE = 0.95  # the rest goes to gaps in the allocator and to what the driver keeps
DRIVER = Path("/dev/nvidiactl")


def gpu_gib(name: str) -> float:
    """
    Raises:
        ConfigError: no such GPU is known; names those that are, and the key for others.
    """
    require(
        name in GPUS,
        f"placement.gpu: unknown {name!r:.60}; known are {', '.join(GPUS)}; of others set placement.gpu_memory_gib",
    )
    return GPUS[name]


def found_gpu_gib(driver: Path = DRIVER) -> float:
    """GiB of the smallest GPU of this machine; 0: it has none, or its driver gives no answer."""
    if not driver.exists():
        return 0.0
    try:
        answer = ask_driver("memory.total", "csv,noheader,nounits")
        answer.check_returncode()
        return min(float(line) for line in answer.stdout.split()) / 1024
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0.0  # `dynframe doctor` tells what is wrong with it


def ask_driver(query: str, form: str = "csv,noheader") -> subprocess.CompletedProcess[str]:
    """What the driver says of every GPU of this machine, a line each.

    Raises:
        OSError, subprocess.TimeoutExpired: its program is not installed, or gives no answer.
    """
    command = ["nvidia-smi", f"--query-gpu={query}", f"--format={form}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


@dataclass(frozen=True, slots=True)
class Shared:
    """Workers on one GPU."""

    engines: int = 0
    learners: int = 0
    free: float = 1.0  # share of it


def share_gpus(engines: int, engine_share: float, learners: int, learner_share: float) -> list[Shared]:
    """Every GPU of a run with its workers, as they are placed (actors.cluster.placement).

    Where both have parts, each rank has a GPU with its engines beside it. Else parts go, in order, to the fullest GPU
    that still has one, but for ranks, which never share; a worker that asks for several GPUs has each to itself.
    """
    if engines and learners and 0 < engine_share < 1 and 0 < learner_share < 1:
        beside = engines_beside(engines, learners)
        return [Shared(n, 1, 1.0 - learner_share - n * engine_share) for n in beside]
    if learners > 1 and 0 < learner_share < 1:
        learner_share = 1.0
    gpus: list[Shared] = []
    for is_engine in (*(True,) * engines, *(False,) * learners):
        share = engine_share if is_engine else learner_share
        if share >= 1:
            gpus += [Shared(int(is_engine), int(not is_engine), 0.0)] * round(share)
        elif share > 0:
            _put(gpus, share, is_engine=is_engine)
    return gpus


def by_content(gpus: Sequence[Shared]) -> Iterator[tuple[Shared, int]]:
    """GPUs with different workers, and how many there are of each."""
    contents = [(gpu.engines, gpu.learners) for gpu in gpus]
    for content in dict.fromkeys(contents):
        yield gpus[contents.index(content)], contents.count(content)


def _put(gpus: list[Shared], share: float, *, is_engine: bool) -> None:
    able = [index for index, gpu in enumerate(gpus) if gpu.free >= share - 1e-6]
    if not able:
        gpus.append(Shared())
        able = [len(gpus) - 1]
    place = min(able, key=lambda index: gpus[index].free)
    gpu = gpus[place]
    gpus[place] = Shared(gpu.engines + is_engine, gpu.learners + (not is_engine), gpu.free - share)
