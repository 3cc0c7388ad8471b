"""Whether this machine has what a run takes: processors, memory, disk. Part of the composition root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from rl.config.errors import ConfigError
from rl.config.run import RunConfig
from rl.run.preflight.findings import Finding, Level

CGROUP = Path("/sys/fs/cgroup")  # version 2: a container's own limits
ENGINE_GIB = 1.3  # a vLLM process on CPU, before its caches
LEARNER_GIB = 0.7
DRIVER_GIB = 1.0
MIN_FREE_GIB = 1.0  # of disk, beside checkpoints
BYTES_PER_TRAINED_PARAMETER = 16  # fp32 weights, gradients and two Adam moments; on disk, both copies of the weights


def check_memory(config: RunConfig, parameters: int) -> Finding:
    """Main memory, by an estimate or by placement.memory_gib.

    Args:
        parameters: of the policy; 0: not known, or too few to matter.
    """
    placement = config.placement
    if placement.learner_gpus or placement.rollout_gpus:
        return Finding("memory", Level.NOTE, "GPU memory is checked by the engines when they start")
    if _joins_a_cluster():
        return Finding("memory", Level.NOTE, "not checked: the run's workers are on the cluster of RAY_ADDRESS")
    needed, free = placement.memory_gib or _estimated_gib(config, parameters), available_bytes() / 2**30
    wanted = needed * (1 + placement.memory_margin)
    source = "placement.memory_gib" if placement.memory_gib else "estimated"
    detail = f"{needed:.1f} GiB needed ({source}), {free:.1f} GiB free"
    if needed > free:
        return Finding(
            "memory",
            Level.FAILED,
            f"{detail}; close programs, or lower rollout.num_workers, learner.num_ranks or "
            "rollout.engine.kv_cache_bytes; where you know better than the estimate, set placement.memory_gib",
        )
    if wanted > free:
        margin = f"{placement.memory_margin:.0%}"
        return Finding("memory", Level.NOTE, f"{detail}: less than {margin} to spare (placement.memory_margin)")
    return Finding("memory", Level.OK, detail)


def _estimated_gib(config: RunConfig, parameters: int) -> float:
    engines = config.rollout.num_workers * (ENGINE_GIB + config.rollout.engine.kv_cache_bytes / 2**30)
    trained = parameters * BYTES_PER_TRAINED_PARAMETER / 2**30
    learners = config.learner.num_ranks * (LEARNER_GIB + trained)
    copied = trained  # a checkpoint in memory, until it is written beside the run
    return engines + learners + copied + DRIVER_GIB


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
    """The run's folder can be written, and its disk holds every checkpoint that is kept."""
    folder = Path(config.output_dir)
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not os.access(existing, os.W_OK):
        return Finding("output_dir", Level.FAILED, f"{existing} cannot be written; set output_dir=...")
    kept = config.trainer.keep_checkpoints + 1  # the next one is written before the oldest goes
    kept += bool(config.trainer.best_metric and config.trainer.eval_tasks)  # the best one stays
    if config.trainer.keep_every:
        kept += config.trainer.steps // config.trainer.keep_every
    needed = MIN_FREE_GIB + kept * parameters * BYTES_PER_TRAINED_PARAMETER / 2**30
    free = psutil.disk_usage(str(existing)).free / 2**30
    if free < needed:
        remedy = "make room, keep fewer (trainer.keep_checkpoints, keep_every), or set output_dir to another disk"
        detail = f"{existing} has {free:.1f} GiB free; {needed:.1f} GiB are needed: {remedy}"
        return Finding("output_dir", Level.FAILED, detail)
    return Finding("output_dir", Level.OK, f"{folder / config.name}, {needed:.1f} of {free:.0f} GiB free are needed")


def check_resources(config: RunConfig) -> Iterator[Finding]:
    """Processors and GPUs that the workers ask for."""
    placement = config.placement
    cpus = (
        config.rollout.num_workers * placement.rollout_cpus
        + config.scoring.num_workers * placement.reward_cpus
        + config.learner.num_ranks * placement.learner_cpus
    )
    gpus = _gpus(config)
    needed = f"{cpus:g} CPU and {gpus:g} GPU"
    if _joins_a_cluster():
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
    return not _joins_a_cluster() and not Path("/dev/nvidiactl").exists()


def _joins_a_cluster() -> bool:
    return os.environ.get("RAY_ADDRESS", "local") not in ("", "local")
