"""Whether this machine has what a run takes: processors, memory, disk. Part of the composition root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from rl.config.errors import ConfigError
from rl.config.run import RunConfig
from rl.memory_plan.disk import checkpoint_bytes, most_checkpoints
from rl.memory_plan.gpus import DRIVER
from rl.run.preflight.findings import Finding, Level

CGROUP = Path("/sys/fs/cgroup")  # version 2: a container's own limits
MIN_FREE_GIB = 1.0  # of disk, beside checkpoints


def available_bytes() -> int:
    """Memory that can still be taken: the machine's, or what a container's limit leaves of it."""
    free = psutil.virtual_memory().available
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        counters = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except OSError:  # no container, or one that tells no limit
        return free
    reclaimable = int(counters.get("inactive_file", 0))  # file pages, given back under pressure
    return free if limit == "max" else min(free, max(0, int(limit) - used + reclaimable))


def check_output(config: RunConfig, parameters: int) -> Finding:
    """The run's folder can be written, and its disk holds every checkpoint that is kept.

    Args:
        parameters: of the policy; 0: not known, or too few to matter.
    """
    folder = Path(config.output_dir)
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not os.access(existing, os.W_OK):
        return Finding("output_dir", Level.FAILED, f"{existing} cannot be written; set output_dir=...")
    needed = MIN_FREE_GIB + most_checkpoints(config) * checkpoint_bytes(config, parameters, parameters) / 2**30
    free = psutil.disk_usage(str(existing)).free / 2**30
    if free < needed:
        remedy = "make room, keep fewer (trainer.keep_checkpoints, keep_every), or set output_dir to another disk"
        detail = f"{existing} has {free:.1f} GiB free; {needed:.1f} GiB are needed: {remedy}"
        return Finding("output_dir", Level.FAILED, detail)
    return Finding("output_dir", Level.OK, f"{folder / config.name}, {needed:.1f} of {free:.0f} GiB free are needed")


def check_resources(config: RunConfig) -> Iterator[Finding]:
    """Processors and GPUs that the workers ask for."""
    placement = config.placement
    cpus = config.learner.num_ranks * placement.learner_cpus
    if not config.only_finetunes:
        cpus += config.rollout.num_workers * placement.rollout_cpus + config.scoring.num_workers * placement.reward_cpus
    gpus = _gpus(config)
    needed = f"{cpus:g} CPU and {gpus:g} GPU"
    if joins_a_cluster():
        yield Finding("resources", Level.OK, f"{needed}, asked of the cluster when the run starts")
    elif gpus and _lacks_gpus():
        yield Finding("resources", Level.NOTE, f"{needed}: this machine has no GPU; submit the run to a cluster")
    else:
        cores = os.cpu_count() or 1
        note = f"; {cores} cores here, workers take turns" if cpus > cores else ""
        yield Finding("resources", Level.OK, needed + note)


def require_gpus(config: RunConfig) -> None:
    """Refuse a run on this machine that asks for GPUs which the machine has not.

    Raises:
        ConfigError: with the ways out.
    """
    if (needed := _gpus(config)) and _lacks_gpus():
        raise ConfigError(
            f"the run needs {needed:g} GPU and this machine has none: submit it to a cluster (`dynframe submit`), or "
            "set placement.rollout_gpus=0 and placement.learner_gpus=0"
        )


def _gpus(config: RunConfig) -> float:
    placement = config.placement
    return config.rollout.num_workers * placement.rollout_gpus + config.learner.num_ranks * placement.learner_gpus


def _lacks_gpus() -> bool:
    return not joins_a_cluster() and not DRIVER.exists()


def joins_a_cluster() -> bool:
    """Whether the run's workers are on the cluster of RAY_ADDRESS."""
    return os.environ.get("RAY_ADDRESS", "local") not in ("", "local")
