"""The workers of a run, spawned and wired: the part of the composition root that knows Ray's shape.

The factories at the end cross into the workers, and only there are vLLM and DeepSpeed imported.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
from rich.console import Console
from rich.progress import Progress, TaskID

from actors.learner import LearnerError, LearnerGroup, Restore
from actors.placement import Demand, Slots, connect, named
from actors.player import Player
from actors.reward import RewardPool
from actors.rollout_crew import RolloutCrew
from actors.rollout_pool import RolloutPool
from actors.traces import TraceError, TraceFeed, TracePool
from actors.waiting import nothing
from envs.formats import RetrievalTrace
from rl.cold_start import run_cold_start
from rl.config import OptimizerConfig, RunConfig
from rl.config_file import to_dict
from rl.policy.scenes import fingerprint as scenes_fingerprint
from rl.policy.vllm_plugin import engine_environment
from rl.prepare import built_once, fingerprint, make_surroundings, prepare_traces, progress_bar
from rl.trajectory import Sampling

log = logging.getLogger(__name__)

START_TIMEOUT_S = 600.0  # an engine or learner that has not started by then never will
LEARNER_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
_GROUPS = itertools.count()  # of learners that this process has spawned
NO_GPU = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}  # of a learner that computes on the CPU beside a GPU


@contextmanager
def cluster(config: RunConfig, console: Console, demand: Demand | None = None) -> Iterator[Slots]:
    """Ray, and one slot per worker; released and, if started here, stopped in the end.

    Args:
        demand: workers of each kind; None: those of a training run.
    """
    if demand is None:
        demand = Demand(config.rollout.num_workers, config.scoring.num_workers, config.learner.num_ranks)
    was_running = ray.is_initialized()
    dashboard = connect(config.placement, demand)
    if dashboard:
        console.print(f"Ray dashboard: http://{dashboard} (its token: `ray get-auth-token`)", highlight=False)
    slots = Slots(config.placement, demand)
    try:
        yield slots
    finally:
        slots.release()
        if not was_running:
            ray.shutdown()


def spawn_rollouts(
    config: RunConfig, policy_dir: Path, slots: Slots, check: Callable[[], None] = nothing
) -> RolloutPool:
    """Engines with the environment around them; they load in the background until `crew.wait_ready`.

    Args:
        check: called while waiting for them; what it raises ends the wait.
    """
    device = "cuda" if config.placement.rollout_gpus else "cpu"
    environment = {"runtime_env": {"env_vars": engine_environment(device)}}
    crew = RolloutCrew(
        partial(start_player, config, policy_dir.absolute()),
        config.rollout.num_workers,
        lambda index: slots.options("rollout", index) | environment,
        stall_timeout_s=config.rollout.stall_timeout_s,
        start_timeout_s=START_TIMEOUT_S,
        memory_growth_mib=config.rollout.memory_growth_mib,
        device_memory_growth_mib=config.rollout.device_memory_growth_mib,
    )
    return RolloutPool(crew, timeout_s=config.rollout.call_timeout_s, check=check)


def spawn_rewards(config: RunConfig, slots: Slots) -> RewardPool:
    """Reward workers."""
    return RewardPool(config.rewards, config.scoring, lambda index: slots.options("reward", index))


def spawn_learners(
    config: RunConfig,
    policy_dir: Path,
    slots: Slots,
    *,
    optimizer: OptimizerConfig,
    total_updates: int,
    name: str = "learner",
    attend: Callable[[], None] = nothing,
    restore: Restore | None = None,
) -> LearnerGroup:
    """DeepSpeed ranks around the policy in `policy_dir`.

    Args:
        name: of the actors, before their rank. Ray frees a killed actor's name late, so each group takes another.
        attend, restore: as in LearnerGroup.
    """
    built = next(_GROUPS)
    environment = LEARNER_ENVIRONMENT | ({} if config.placement.learner_gpus else NO_GPU)
    return LearnerGroup(
        partial(start_learner, config, policy_dir.absolute(), optimizer, total_updates),
        config.learner.num_ranks,
        lambda rank: (
            slots.options("learner", rank)
            | {"name": named(f"{name}/{rank}", built), "runtime_env": {"env_vars": environment}}
        ),
        start_timeout_s=START_TIMEOUT_S,
        timeout_s=config.learner.timeout_s,
        attend=attend,
        restore=restore,
    )


def cold_started_policy(config: RunConfig, policy_dir: Path, slots: Slots, console: Console) -> Path:
    """The policy after the supervised stage, from the cache if everything it depends on is the same."""
    traces = prepare_traces(config, console)
    home = cold_start_home(config, policy_dir, traces)
    if home.is_dir():
        console.print(f"cold start: found in {home}", highlight=False)
    begun: list[int] = []  # steps of the attempt under way: what fails before the first would fail again

    def attempt(folder: Path) -> None:
        begun.clear()
        _cold_start(config, policy_dir, traces, slots, console, folder, begun)

    for _ in range(config.learner.max_rebuilds):
        try:
            return built_once(home, attempt)
        except (LearnerError, TraceError) as error:
            if not begun:
                raise
            log.warning("a worker of the cold start is lost, it begins again: %s", error)
    return built_once(home, attempt)


def cold_start_home(config: RunConfig, policy_dir: Path, traces: Sequence[RetrievalTrace]) -> Path:
    """The folder of the policy after the supervised stage; not there before that has run."""
    return Path(config.cache_dir) / f"cold-start-{cold_start_fingerprint(config, policy_dir, traces)}"


def cold_start_fingerprint(config: RunConfig, policy_dir: Path, traces: Sequence[RetrievalTrace]) -> str:
    """Names the outcome of the supervised stage: changes with anything that it depends on."""
    made_from = {
        "policy": _policy_identity(policy_dir, Path(config.cache_dir)),
        "scenes": scenes_fingerprint(config.policy.scenes),
        "dtype": config.policy.dtype,
        "traces": fingerprint([[t.task.task_id, t.task.video_path, t.task.question, *t.replies] for t in traces]),
        **{section: to_dict(getattr(config, section)) for section in ("cold_start", "video", "retrieval", "prompt")},
        "max_model_len": config.rollout.engine.max_model_len,
        "freeze_vision": config.learner.freeze_vision,
        "max_grad_norm": config.learner.optimizer.max_grad_norm,
    }
    return fingerprint(made_from)


def _policy_identity(policy_dir: Path, cache_dir: Path) -> Any:
    """Folders in the cache are named after what they were made from; of others, the place and the weights' files."""
    folder = policy_dir.resolve()
    if folder.is_relative_to(cache_dir.resolve()):
        return folder.name
    weights = sorted((file.name, file.stat()) for file in folder.glob("*.safetensors"))
    return [str(folder), [[name, status.st_size, status.st_mtime_ns] for name, status in weights]]


def _cold_start(
    config: RunConfig,
    policy_dir: Path,
    traces: Sequence[RetrievalTrace],
    slots: Slots,
    console: Console,
    folder: Path,
    begun: list[int],
) -> None:
    """One attempt; `begun` gets every step it took."""
    declared = config.cold_start
    optimizer = OptimizerConfig(lr=declared.lr, max_grad_norm=config.learner.optimizer.max_grad_norm)
    with ExitStack() as workers, progress_bar(console) as progress:
        pool = TracePool(
            partial(make_surroundings, config, policy_dir.absolute()),
            config.rollout.num_workers,
            lambda index: {"num_cpus": 0},  # no name: a second attempt needs others. They work while the engines load
            timeout_s=config.video.decode_timeout_s,
        )
        workers.callback(pool.stop)
        learners = spawn_learners(
            config, policy_dir, slots, optimizer=optimizer, total_updates=declared.steps, name="cold-start"
        )
        workers.callback(learners.stop)
        bar = progress.add_task("cold start", total=declared.steps)

        def show(step: int, metrics: Mapping[str, float]) -> None:
            begun.append(step)
            _show(progress, bar, step, declared.steps, metrics["loss/nll"])

        last = run_cold_start(
            learners,
            TraceFeed(pool, traces).lessons,
            num_samples=len(traces),
            steps=declared.steps,
            batch_size=declared.batch_size,
            seed=declared.seed,
            progress=show,
        )
        learners.export_policy(folder)
    console.print(
        f"cold start: {declared.steps} steps, {last['cold_start/nll_first']:.3f} -> {last['cold_start/nll_last']:.3f} "
        "nat per token"
    )


def _show(progress: Progress, bar: TaskID, step: int, steps: int, nll: float) -> None:
    progress.update(bar, completed=step)
    if step % max(1, steps // 10) == 0:
        progress.console.print(f"cold start {step}/{steps}  {nll:.3f} nat per token", highlight=False)


def start_player(config: RunConfig, policy_dir: Path) -> Player:
    """Runs in a rollout worker: its engine and environment."""
    from actors.engine import make_engine  # vLLM takes over a process's torch: only engine workers may import it

    rollout = config.rollout
    engine = make_engine(policy_dir, config.policy, rollout.engine, config.seed, deterministic=rollout.deterministic)
    return Player(
        engine,
        make_surroundings(config, policy_dir),
        Sampling(rollout.max_new_tokens, rollout.temperature),
        group_size=rollout.group_size,
        seed=config.seed,
    )


def start_learner(
    config: RunConfig, policy_dir: Path, optimizer: OptimizerConfig, total_updates: int, **place: Any
) -> Any:
    """Runs in a learner worker: its rank. `place` is rank, world_size, master_addr and master_port."""
    from rl.learner import make_learner  # DeepSpeed: only learner workers may import it

    return make_learner(config, policy_dir, optimizer=optimizer, total_updates=total_updates, **place)
