"""What a step costs the driver: processor time, bytes and memory per trajectory, by the number of engines.

    python benchmarks/driver.py --engines 1 8 64 256 1000 --trajectories 512 1024 4096 8192 8192

The real loop (rl.trainer) with the real pools, learner group, reporter and records. Engines and the learner's ranks are
scripted (benchmarks/scripted_workers.py): they sleep, and return groups of realistic lengths. Every size runs in a
process and a Ray of its own. Each engine has a slot of the rollout worker group; beyond `--hosts` several share one Ray
actor, for two cores carry no more: the driver makes the same calls either way.

    CPU ms     processor time of the driver's process, Ray's threads in it included, per trajectory; then by stage
    pickled B  what the driver pickles and unpickles for Ray, per trajectory
    MiB        private memory of the driver before the first step, after it, and after the last
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
from rich.console import Console
from rich.progress import Progress
from scripted_workers import Script, ScriptedRank, ScriptedRunner, script_task, scripted_learner
from tables import print_conditions, print_table

import actors.learner_group
import actors.rollout_group
import actors.worker_slot
from actors.groups import KEPT_BY_DRIVER, load_groups
from actors.learner_group import LearnerGroup
from actors.reward import RewardPool
from actors.rollout_group import RolloutWorkerGroup
from actors.rollout_pool import RolloutPool
from actors.worker.memory import GrowthGuard, own_memory_mib
from actors.worker.process import WorkerProcess
from actors.worker.stall_detector import StallDetector
from actors.worker_slot import WorkerHandle, WorkerLimits
from rl.config.file import load_config
from rl.policy.processor import Processor
from rl.policy.tiny_tokenizer import train_tokenizer
from rl.run.reporter import Reporter
from rl.run.run import Run
from rl.tracking.failures import FailureLog
from rl.tracking.sinks import JsonlSink, MetricLog
from rl.trainer import Schedule, train
from rl.trajectory import LearnerUpdate, ScoredGroup

CALLS = 20_000  # of one of them at a time
REWARD_WORKERS = 2
RANKS = 2
STAGES = ("rollout", "update", "report")  # rewards are a part of the first
OBJECT_STORE_BYTES = 2 * 2**30
CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"


def main() -> None:
    options = parse_arguments()
    if options.one is not None:
        print(json.dumps(measure(options.one, options.trajectories[0], options)))
        return
    print_conditions("ray")
    headings = (
        "engines",
        "trajectories a step",
        "CPU ms",
        *STAGES,
        "pickled B",
        "MiB before",
        "after one",
        "after all",
        "s a step",
    )
    trajectories = dict(zip(options.engines, options.trajectories, strict=True))
    print_table(headings, (row(engines, trajectories[engines]) for engines in options.engines))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=int, nargs="+", default=[1, 8, 64, 256, 1000], help="(default: %(default)s)")
    parser.add_argument(
        "--trajectories", type=int, nargs="+", default=[512, 1024, 4096, 8192, 16384], help="a step, per size"
    )
    parser.add_argument("--steps", type=int, default=3, help="(default %(default)s)")
    parser.add_argument("--siblings", type=int, default=8, help="of a group (default %(default)s)")
    parser.add_argument("--opening", type=int, default=650, help="tokens shared by siblings (default %(default)s)")
    parser.add_argument("--look", type=int, default=230, help="tokens a call inserts (default %(default)s)")
    parser.add_argument("--sampled", type=int, default=200, help="tokens a sibling samples (default %(default)s)")
    parser.add_argument("--group-seconds", type=float, default=4.0, help="that a group takes (default %(default)s)")
    parser.add_argument("--hosts", type=int, default=4, help="processes of scripted engines (default %(default)s)")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)  # one size, in this process
    options = parser.parse_args()
    if options.one is None and len(options.engines) != len(options.trajectories):
        parser.error("as many --trajectories as --engines")
    return options


def row(engines: int, trajectories: int) -> tuple[str, ...]:
    """One size, measured by a process of its own."""
    given = [*sys.argv[1:], "--one", str(engines), "--trajectories", str(trajectories)]
    ended = subprocess.run([sys.executable, __file__, *given], capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(ended.stderr[-8000:])
    measured = json.loads(ended.stdout.splitlines()[-1])
    return (
        f"{engines:,}",
        f"{trajectories:,}",
        f"{sum(measured['ms'].values()):.3f}",
        *(f"{measured['ms'][stage]:.3f}" for stage in STAGES),
        f"{measured['bytes']:.0f}",
        *(f"{mib:.0f}" for mib in measured["mib"]),
        f"{measured['seconds']:.1f}",
    )


def measure(engines: int, trajectories: int, options: argparse.Namespace) -> dict[str, Any]:
    """CPU ms by stage, bytes, memory: of one size."""
    script = Script(
        siblings=options.siblings,
        opening_tokens=options.opening,
        look_tokens=options.look,
        call_tokens=options.sampled // 3,
        answer_tokens=options.sampled - options.sampled // 3,
        seconds=options.group_seconds,
    )
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    with tempfile.TemporaryDirectory() as folder:
        quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
        ray.init("local", num_cpus=2, object_store_memory=OBJECT_STORE_BYTES, **quiet)
        try:
            hosts = min(options.hosts, engines)
            return Bench(script, engines, hosts, trajectories // options.siblings, Path(folder)).run(options.steps)
        finally:
            ray.shutdown()


class Bench:
    """One size: the parts of a run, and what they cost the driver."""

    def __init__(self, script: Script, engines: int, hosts: int, groups: int, folder: Path) -> None:
        self._script, self._num_hosts, self._groups, self._folder = script, hosts, groups, folder
        self._ms: Counter[str] = Counter()
        self._bytes, self._mib = 0, []
        self._config = replace(
            load_config([CONFIG]), scoring=replace(load_config([CONFIG]).scoring, num_workers=REWARD_WORKERS)
        )
        actors.learner_group.LearnerWorker = ScriptedRank
        actors.rollout_group.launch = self._launch
        self._hosts: dict[int, Any] = {}
        self._run = self._make_run(engines)

    def run(self, steps: int) -> dict[str, Any]:
        """{"ms": by stage and "bytes": per trajectory; "mib": before, after one step, after all; "seconds": a step}."""
        run = self._run
        learners = LearnerGroup(
            scripted_learner,
            RANKS,
            partial(_options, "learner"),
            start_timeout_s=120.0,
            timeout_s=600.0,
            restore=run.restore,
            recorded_trajectories=self._config.logging.trajectories_per_step,
        )
        run.rollouts.workers.wait_ready(300.0)
        run.rewards.score_all([], step=0)
        run.rollouts.generate([script_task(index) for index in range(RANKS)], step=0)  # everything is imported
        numbers = MetricLog([JsonlSink(self._folder, keep_through_step=-1, backlog=run.backlog)])
        progress = Progress(console=run.console)
        reporter = Reporter(self._config, self._folder, numbers, run.backlog, progress, 0, run.processor, load_groups)

        def report(
            step: int, scored: Sequence[ScoredGroup], learned: LearnerUpdate, metrics: Mapping[str, float]
        ) -> None:
            with self._stage("report"):
                counters = run.rollouts.workers.stats()
                reporter.step(step, scored, learned, {**metrics, **counters}, {"w": "00"})
            self._mib.append(own_memory_mib())

        self._mib.append(own_memory_mib())
        began = time.perf_counter()
        with self._counted():
            train(
                Schedule(first_step=0, steps=steps, save_every=0, eval_every=0),
                tasks_for=lambda step, attempt: [script_task(step * self._groups + i) for i in range(self._groups)],
                rollouts=self._part(run.sampler, start="rollout", collect="rollout", settle="rollout"),
                learners=self._part(learners, receive="update", update="update"),
                weights=SimpleNamespace(push=lambda: 0),
                report=report,
                save=lambda step, version: None,
                evaluate=lambda step: False,
            )
        seconds, trajectories = (time.perf_counter() - began) / steps, steps * self._groups * self._script.siblings
        return {
            "ms": {stage: self._ms[stage] / trajectories for stage in STAGES},
            "bytes": self._bytes / trajectories,
            "mib": [self._mib[0], self._mib[1], self._mib[-1]],
            "seconds": seconds,
        }

    def _make_run(self, engines: int) -> Run:
        train_tokenizer(768).save(str(self._folder / "tokenizer.json"))
        vision = {"patch_size": 14, "spatial_merge_size": 2, "tokens_per_second": 2}
        policy = {"model_type": "qwen2_5_vl", "vision_config": vision, "text_config": {"vocab_size": 768}}
        (self._folder / "config.json").write_text(json.dumps(policy))
        workers = RolloutWorkerGroup(partial(ScriptedRunner, self._script), engines, partial(_options, "rollout"))
        rollouts = RolloutPool(workers, timeout_s=3600.0, group_size=self._script.siblings)
        run = Run(
            config=self._config,
            console=Console(quiet=True),
            writer=SimpleNamespace(run_dir=self._folder, check=lambda: None),
            policy_dir=self._folder,
            slots=None,
            saver=None,
            tasks=(),
            held_out=(),
            processor=Processor.from_pretrained(self._folder, self._config.policy.scenes),
            rollouts=rollouts,
            rewards=RewardPool(
                self._config.rewards, self._config.scoring, partial(_options, "reward"), restore=rollouts.restore
            ),
            log_file=self._folder / "log",
        )
        run.failures = FailureLog(self._folder, run.backlog, run.processor.pieces, load_groups)
        return run

    def _launch(self, make: Any, options: Mapping[str, Any], limits: WorkerLimits, replaced: int) -> WorkerHandle:
        """As actors.worker_slot.launch; slots beyond the number of hosts share their processes."""
        number = int(options["name"].rsplit("/", 1)[1])
        host = number % self._num_hosts
        if host not in self._hosts:
            actors.worker_slot.MAX_CALLS = CALLS
            self._hosts[host] = actors.worker_slot.launch(make, options, limits, replaced)
            return self._hosts[host]
        shared = self._hosts[host]
        watched = StallDetector(limits.stall_timeout_s), GrowthGuard(0.0), GrowthGuard(0.0)
        return WorkerHandle(shared.actor, WorkerProcess(options["name"], shared.actor.location.remote()), *watched)

    def _part(self, part: Any, **methods: str) -> Any:
        """A part of the loop, its methods measured as the stages named."""

        def measured(method: Any, stage: str) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                with self._stage(stage):
                    return method(*args, **kwargs)

            return call

        return SimpleNamespace(**{name: measured(getattr(part, name), stage) for name, stage in methods.items()})

    @contextmanager
    def _stage(self, stage: str) -> Iterator[None]:
        began = time.process_time()
        yield
        self._ms[stage] += 1e3 * (time.process_time() - began)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count the bytes of what this process pickles and unpickles for Ray."""
        context = ray._private.worker.global_worker.get_serialization_context()
        serialize, deserialize = context.serialize, context._deserialize_object

        def count_out(value: Any, *args: Any) -> Any:
            serialized = serialize(value, *args)
            self._bytes += serialized.total_bytes
            return serialized

        def count_in(data: Any, *args: Any) -> Any:
            self._bytes += len(data) if data is not None else 0
            return deserialize(data, *args)

        context.serialize, context._deserialize_object = count_out, count_in
        yield
        context.serialize, context._deserialize_object = serialize, deserialize


def _options(kind: str, index: int) -> dict[str, Any]:
    return {"num_cpus": 0, "name": f"bench/{kind}/{index}", "runtime_env": {"env_vars": KEPT_BY_DRIVER}}


if __name__ == "__main__":
    main()
