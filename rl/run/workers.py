"""The workers of a run, spawned and wired: the part of the composition root that knows Ray's shape.

The factories at the end cross into the workers, and only there are vLLM and DeepSpeed imported.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from actors.cluster.connection import connected
from actors.cluster.gpu_turn import gpu_turn
from actors.cluster.placement import Demand, Slots, incarnation_name
from actors.delivery import Restore
from actors.device_transfer import DeviceTransfer
from actors.groups import KEPT_BY_DRIVER
from actors.learner_group import LearnerGroup
from actors.reward import RewardPool
from actors.rollout_group import RolloutWorkerGroup
from actors.rollout_pool import RolloutPool
from actors.rollout_runner import RolloutRunner
from actors.sft_samples import SamplePool
from actors.worker.waiting import POLL_S, do_nothing
from rl.config.learner import OBJECT_STORE, OptimizerConfig
from rl.config.run import RunConfig, weight_transport, with_absolute_code, works_in_a_copy
from rl.config.trainer import PlacementConfig
from rl.memory_plan.engine import with_sequences
from rl.memory_plan.learner import ITEMSIZE
from rl.memory_plan.plan import memory_plan
from rl.memory_plan.record import GivenUp
from rl.policy.structure import structure_of
from rl.policy.vllm.plugin import engine_environment, without_sound
from rl.run.console.stages import say, stage
from rl.run.imports import uncollected
from rl.run.preflight.memory import hardware_of
from rl.run.preflight.nodes import require_nodes
from rl.run.prepare.encoder import make_encoder
from rl.run.prepare.episode_context import make_episode_context
from rl.run.recomputation import with_recomputation
from rl.trajectory import Sampling

log = logging.getLogger(__name__)

START_TIMEOUT_S = 600.0  # an engine or learner that has not started by then never will
LEARNER_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
_GROUPS = itertools.count()  # of learners and sample workers that this process has spawned
# of a learner that computes on the CPU, also beside a GPU; a step of a small policy is 50 times slower with two threads
# on busy cores
ON_CPU = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


@contextmanager
def cluster(config: RunConfig, policy_dir: Path, console: Console, demand: Demand | None = None) -> Iterator[Slots]:
    """Ray, its nodes looked at, and one slot per worker; released and, if started here, stopped in the end.

    Args:
        policy_dir: the prepared policy, which workers read.
        demand: workers of each kind; None: those of a training run.
    Raises:
        ConfigError: a node cannot work for the run, or the cluster can never hold it.
    """
    if demand is None:
        demand = Demand(config.rollout.num_workers, config.scoring.num_workers, config.learner.num_ranks)
    address = os.environ.get("RAY_ADDRESS")
    with ExitStack() as stack:
        with stage(console, f"connecting to Ray at {address}" if address else "starting Ray"):
            dashboard = stack.enter_context(connected(config.placement, demand))
        if dashboard:
            say(console, f"Ray dashboard: http://{dashboard} (its token: `ray get-auth-token`)")
        require_nodes(config, policy_dir, demand)
        slots = Slots(config.placement, demand, config.name)
        stack.callback(slots.release)
        yield slots


def spawn_rollouts(
    config: RunConfig, policy_dir: Path, slots: Slots, check: Callable[[], None] = do_nothing
) -> RolloutPool:
    """Engines with the environment around them; they load in the background until `workers.wait_ready`.

    Args:
        check: called while waiting for them; what it raises ends the wait.
    """
    config = with_engine_batch(config, policy_dir)
    device = "cuda" if config.placement.rollout_gpus else "cpu"
    environment = {"runtime_env": {"env_vars": engine_environment(device) | KEPT_BY_DRIVER}}
    workers = RolloutWorkerGroup(
        partial(start_rollout_runner, config, policy_dir.absolute()),
        config.rollout.num_workers,
        lambda index: slots.options("rollout", index) | environment,
        stall_timeout_s=config.rollout.stall_timeout_s,
        start_timeout_s=_engine_start_s(config),
        memory_growth_mib=config.rollout.memory_growth_mib,
        device_memory_growth_mib=config.rollout.device_memory_growth_mib,
    )
    return RolloutPool(
        workers,
        timeout_s=config.rollout.call_timeout_s,
        check=check,
        max_num_seqs=config.rollout.engine.max_num_seqs,
        group_size=config.rollout.group_size,
    )


@contextmanager
def starting_rollouts(
    config: RunConfig, policy_dir: Path, slots: Slots, console: Console, check: Callable[[], None] = do_nothing
) -> Iterator[RolloutPool]:
    """Engines that load while the body runs, and are ready after it; `check` as in spawn_rollouts.

    On GPUs that they share with learners they are ready before it: vLLM measures free memory when it starts, and a cold
    start in the body would allocate and free beside it.
    """
    with stage(console, f"starting {config.rollout.num_workers} engines"):
        rollouts = spawn_rollouts(config, policy_dir, slots, check)
        if config.placement.shares_gpus:
            rollouts.workers.wait_ready(_engine_start_s(config))
        yield rollouts
        rollouts.workers.wait_ready(_engine_start_s(config))


def spawn_rewards(config: RunConfig, slots: Slots, rollouts: RolloutPool) -> RewardPool:
    """Reward workers, for groups of these rollouts.

    In a job every worker finds users' code in the copy of the job's folder that its own node has.
    """
    terms = (config if works_in_a_copy() else with_absolute_code(config)).rewards
    restore = partial(rollouts.restore, heeds_stop=False)  # also while weights wait to be pushed
    return RewardPool(terms, config.scoring, lambda index: slots.options("reward", index), restore)


def spawn_samples(config: RunConfig, policy_dir: Path, num_workers: int, max_tokens: int) -> SamplePool:
    """Workers that encode supervised examples; they reserve no CPU, for they work while learners and engines wait.

    Args:
        max_tokens: of a sample.
    """
    spawned = next(_GROUPS)
    return SamplePool(
        partial(make_encoder, config, policy_dir.absolute(), max_tokens),
        num_workers,
        lambda index: {"num_cpus": 0, "name": incarnation_name(f"{config.name}/sample/{index}", spawned)},
        timeout_s=config.video.decode_timeout_s,
    )


def spawn_learners(
    config: RunConfig,
    policy_dir: Path,
    slots: Slots,
    *,
    optimizer: OptimizerConfig,
    total_updates: int,
    kind: str = "learner",
    num_ranks: int | None = None,
    poll: Callable[[], None] = do_nothing,
    poll_every_s: float = POLL_S,
    restore: Restore | None = None,
) -> LearnerGroup:
    """DeepSpeed ranks around the policy in `policy_dir`.

    Args:
        kind: as in `Slots.options`. Ray frees a killed actor's name late, so each group takes other names.
        num_ranks: None: learner.num_ranks.
        poll, poll_every_s, restore: as in LearnerGroup.
    """
    config, built = with_recomputation(config, policy_dir), next(_GROUPS)
    environment = learner_environment(config.placement)
    return LearnerGroup(
        partial(start_learner, config, policy_dir.absolute(), optimizer, total_updates),
        num_ranks or config.learner.num_ranks,
        lambda rank: (
            (placed := slots.options(kind, rank))
            | {"name": incarnation_name(placed["name"], built), "runtime_env": {"env_vars": environment}}
        ),
        start_timeout_s=START_TIMEOUT_S,
        timeout_s=config.learner.timeout_s,
        poll=poll,
        poll_every_s=poll_every_s,
        restore=restore,
        sequence_parallel=config.learner.sequence_parallel,
        recorded_trajectories=config.logging.trajectories_per_step,
    )


def uses_engines_gpus(config: RunConfig) -> bool:
    """Whether the cold start learns on the GPUs of the engines, too, which then start after it.

    Where engines and learners share GPUs there is a rank on each of them anyway.
    """
    placement = config.placement
    return placement.rollout_gpus >= 1 and placement.learner_gpus > 0


def cold_start_ranks(config: RunConfig) -> int:
    """Learner ranks of the cold start: one per GPU of the run, unless a batch has fewer traces."""
    others = config.rollout.num_workers * int(config.placement.rollout_gpus) if uses_engines_gpus(config) else 0
    learner, batch = config.learner, config.cold_start.batch_size
    most = learner.num_ranks + min(others, max(0, batch * learner.sequence_parallel - learner.num_ranks))
    return most - most % learner.sequence_parallel


def direct_transfer(config: RunConfig, learners: LearnerGroup, workers: RolloutWorkerGroup) -> DeviceTransfer | None:
    """Links from the learners to the engines; None: weights go through the object store."""
    transport = weight_transport(config)
    if transport == OBJECT_STORE:
        return None
    shards = config.rollout.engine.tensor_parallel_size
    return DeviceTransfer(learners, workers, config.weight_sync, transport, shards)


def start_rollout_runner(config: RunConfig, policy_dir: Path) -> RolloutRunner:
    """Runs in a rollout worker: its engine and environment."""
    # vLLM takes over a process's torch: only engine workers may import it
    with uncollected(), without_sound():
        from actors.engine.engine import make_engine, require_device

    config = with_engine_batch(config, policy_dir)
    rollout = config.rollout
    require_device(config.placement.rollout_gpus)
    with _turn(config, config.placement.rollout_gpus):
        engine = make_engine(
            policy_dir,
            config.policy,
            rollout.engine,
            config.seed,
            deterministic=rollout.deterministic,
            sleeps=config.placement.takes_turns,
        )
    return RolloutRunner(
        engine,
        make_episode_context(config, policy_dir),
        Sampling(rollout.max_new_tokens, rollout.temperature),
        group_size=rollout.group_size,
        seed=config.seed,
    )


def start_learner(
    config: RunConfig, policy_dir: Path, optimizer: OptimizerConfig, total_updates: int, **rendezvous: Any
) -> Any:
    """Runs in a learner worker: its rank. `rendezvous` is rank, world_size, master_addr and master_port."""
    with uncollected():
        from rl.learner.learner import make_learner  # DeepSpeed: only learner workers may import it

    with _turn(config, config.placement.learner_gpus):
        return make_learner(config, policy_dir, optimizer=optimizer, total_updates=total_updates, **rendezvous)


def with_engine_batch(config: RunConfig, policy_dir: Path) -> RunConfig:
    """The configuration with a number for rollout.engine.max_num_seqs, where memory decides it."""
    if config.rollout.engine.max_num_seqs:
        return config
    structure, gpu = structure_of(policy_dir, config.policy), hardware_of(config).gpu_gib
    decided = with_sequences(config, structure, ITEMSIZE[config.policy.dtype], gpu)
    log.info("an engine decodes %d trajectories at once", decided.rollout.engine.max_num_seqs)
    return decided


def planned_turns(config: RunConfig, policy_dir: Path) -> GivenUp | None:
    """What engines and learners give up for each other, by the memory plan; None: they do not take turns."""
    if not config.placement.takes_turns:
        return None
    given_up = memory_plan(config, structure_of(policy_dir, config.policy), hardware_of(config)).given_up
    log.info("in turn: %s", given_up)
    return given_up


def learner_environment(placement: PlacementConfig) -> dict[str, str]:
    """Environment of a learner rank, to be set before torch is imported.

    Beside a GPU it has as many threads as CPUs are reserved for it: an optimizer that is offloaded computes there.
    """
    threads = {"OMP_NUM_THREADS": str(max(1, int(placement.learner_cpus)))}
    return LEARNER_ENVIRONMENT | (threads if placement.learner_gpus else ON_CPU)


def _turn(config: RunConfig, gpus: float) -> AbstractContextManager[None]:
    """A worker's turn to start on a GPU of which it has a fraction."""
    ids = ray.get_gpu_ids() if 0 < gpus < 1 and ray.is_initialized() else ()
    return gpu_turn(ids, _engine_start_s(config))


def _engine_start_s(config: RunConfig) -> float:
    """For an engine to start, those before it on the same GPU included."""
    return START_TIMEOUT_S * config.placement.engines_per_gpu(config.rollout.num_workers, config.learner.num_ranks)
