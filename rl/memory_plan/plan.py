"""The memory plan of a run: what every GPU and every node will hold, from the configuration and the policy's shapes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from rl.config.run import RunConfig
from rl.learner.settings import deepspeed_settings
from rl.memory_plan.engine import EngineMemory, engine_memory, with_sequences
from rl.memory_plan.finetune import finetune_plan
from rl.memory_plan.gpus import USABLE, Shared, by_content, share_gpus
from rl.memory_plan.host import Workers, node_items
from rl.memory_plan.learner import ITEMSIZE, LearnerMemory, learner_memory
from rl.memory_plan.links import link_memory
from rl.memory_plan.recomputation import choices
from rl.memory_plan.record import GIB, Demand, GivenUp, Item, MemoryPlan, Place, items
from rl.policy.structure import Structure


@dataclass(frozen=True, slots=True)
class Hardware:
    """What there is to be filled."""

    gpu_gib: float = 0.0  # of each GPU; 0: not known
    gpu_name: str = ""
    gpus_per_node: int = 8
    node_bytes: float | None = None  # of main memory that a run may take on a node; None: not known
    node_name: str = ""


def memory_plan(config: RunConfig, structure: Structure, hardware: Hardware) -> MemoryPlan:
    """Of a run. `learner.activation_checkpointing=auto` is decided: the cheapest recomputation with which
    every learner rank fits its GPU, or, where there is none, the one that leaves least. Where engines and learners take
    turns, as little is given up as there is room for.

    Raises:
        ConfigError: `learner.deepspeed_config` cannot be read.
    """
    if config.policy.lora.freezes_tower:
        config = replace(config, learner=replace(config.learner, freeze_vision=True))
    *less, most = _turns(config, hardware)
    for choice in choices(config, structure, hardware.gpu_gib):
        decided = recomputing(config, choice)
        plan = _plan(decided, structure, hardware, most)
        if plan.learners_fit:
            break
    plans = [*(_plan(decided, structure, hardware, given_up) for given_up in less), plan]
    plan = next((plan for plan in plans if plan.fits), min(plans, key=lambda plan: plan.lacking))
    return replace(plan, recomputed=choice)


def recomputing(config: RunConfig, choice: str) -> RunConfig:
    """The same run with another value of learner.activation_checkpointing."""
    return replace(config, learner=replace(config.learner, activation_checkpointing=choice))


def _turns(config: RunConfig, hardware: Hardware) -> tuple[GivenUp | None, ...]:
    """What may be given up, the least first; on a GPU that nobody has named it is never nothing."""
    if not config.placement.takes_turns:
        return (None,)
    on_gpu = (GivenUp(states=False), GivenUp(states=False, weights=True)) if hardware.gpu_gib else ()
    return (*on_gpu, GivenUp(), GivenUp(weights=True))


def _plan(config: RunConfig, structure: Structure, hardware: Hardware, given_up: GivenUp | None) -> MemoryPlan:
    """Of a run in which it is known what is recomputed, and what is given up."""
    placement, itemsize = config.placement, ITEMSIZE[config.policy.dtype]
    if config.only_finetunes:
        node = (hardware.node_bytes, hardware.node_name)
        gpus = {"gpu_gib": hardware.gpu_gib, "gpu_name": hardware.gpu_name, "per_node": hardware.gpus_per_node}
        return finetune_plan(config, structure, **gpus, node=node)
    config = with_sequences(config, structure, itemsize, hardware.gpu_gib)
    on_gpu = bool(placement.learner_gpus)
    trained = structure.trained(freeze_vision=config.learner.freeze_vision, lora=config.policy.lora)
    settings = deepspeed_settings(config.learner, config.policy.dtype, trained, on_cuda=on_gpu)
    learner = learner_memory(config, structure, settings, cuda=on_gpu)
    engine = engine_memory(structure, config.rollout.engine, itemsize, cuda=bool(placement.rollout_gpus))
    gpus = share_gpus(
        config.rollout.num_workers, placement.rollout_gpus, config.learner.num_ranks, placement.learner_gpus
    )
    receiver = link_memory(config, structure, itemsize).receiver if placement.rollout_gpus else 0.0
    shared = list(by_content(gpus))
    on_gpus = tuple(_gpu(config, gpu, count, learner, engine, receiver, hardware, given_up) for gpu, count in shared)
    unmet = tuple(_engine_demand(config, engine, hardware)) if placement.rollout_gpus and hardware.gpu_gib else ()
    learners_fit = all(place.fits for (gpu, _), place in zip(shared, on_gpus, strict=True) if gpu.learners)
    node = _node(config, structure, gpus, learner, engine, hardware, given_up)
    return MemoryPlan((*on_gpus, node), unmet, learners_fit=learners_fit, given_up=given_up)


def _gpu(
    config: RunConfig,
    gpu: Shared,
    count: int,
    learner: LearnerMemory,
    engine: EngineMemory,
    receiver: float,
    hardware: Hardware,
    given_up: GivenUp | None,
) -> Place:
    """One GPU with its workers; an engine's end of a link is made after vLLM has taken its share."""
    engines, learners = _engine_items(config, gpu, engine, hardware), learner.peak() if gpu.learners else ()
    if given_up and engines and learners:
        asleep = items([("CUDA and NCCL", gpu.engines * engine.context)])
        turns = ((engines, learner.waiting(offloaded=given_up.states)), (asleep, learners))
        engines, learners = max(turns, key=lambda turn: sum(item.num_bytes for held in turn for item in held))
    held = [Item(f"engine: {item.name}", item.num_bytes) for item in engines]
    held += items([("engine: buffers of the link to learners", gpu.engines * receiver)])
    held += [Item(_of(gpu.learners, item.name), gpu.learners * item.num_bytes) for item in learners]
    capacity = hardware.gpu_gib * GIB * USABLE if hardware.gpu_gib else None
    return Place(_gpu_name(gpu), tuple(held), capacity, hardware.gpu_name, count)


def _engine_items(config: RunConfig, gpu: Shared, engine: EngineMemory, hardware: Hardware) -> tuple[Item, ...]:
    """An engine fills its share of the GPU; where that is not known, it takes what one longest trajectory needs."""
    if not gpu.engines:
        return ()
    options = config.rollout.engine
    fixed = gpu.engines * engine.fixed
    share = gpu.engines * options.gpu_memory_utilization * hardware.gpu_gib * GIB
    cache = max(gpu.engines * engine.kv_per_token * options.max_model_len, share - fixed)
    return items(
        [
            ("weights", gpu.engines * engine.weights),
            ("prefill and encoding", gpu.engines * engine.working),
            ("CUDA graphs", gpu.engines * engine.graphs),
            ("CUDA and NCCL", gpu.engines * engine.context),
            ("KV cache", cache),
        ]
    )


def _engine_demand(config: RunConfig, engine: EngineMemory, hardware: Hardware) -> Iterator[Demand]:
    """An engine's share must hold what it has and one trajectory of the longest context, or vLLM refuses to start."""
    options = config.rollout.engine
    share = options.gpu_memory_utilization * hardware.gpu_gib * GIB
    needed = engine.fixed + engine.kv_per_token * options.max_model_len
    if needed > share:
        yield Demand(
            "engine",
            needed,
            share,
            f"an engine needs {needed / GIB:.1f} GiB for its weights, its work and one trajectory of "
            f"{options.max_model_len} tokens, and may take {share / GIB:.1f} GiB "
            f"(rollout.engine.gpu_memory_utilization={options.gpu_memory_utilization:g})",
        )


def _node(
    config: RunConfig,
    structure: Structure,
    gpus: list[Shared],
    learner: LearnerMemory,
    engine: EngineMemory,
    hardware: Hardware,
    given_up: GivenUp | None,
) -> Place:
    """The node that holds most."""
    first, *others = _nodes(config, gpus, hardware.gpus_per_node)
    candidates = [node_items(config, structure, workers, learner, engine, given_up) for workers in (first, *others)]
    fullest = max(candidates, key=lambda held: sum(item.num_bytes for item in held))
    name = "the machine" if not others else f"the fullest of {len(candidates)} nodes"
    return Place(name, fullest, hardware.node_bytes, hardware.node_name)


def _nodes(config: RunConfig, gpus: list[Shared], per_node: int) -> list[Workers]:
    """Workers of every node: GPUs fill node after node, what has no GPU is on the first."""
    engines, learners, rewards = config.rollout.num_workers, config.learner.num_ranks, config.scoring.num_workers
    count = max(1, math.ceil(len(gpus) / per_node))
    parts = [gpus[index * per_node : (index + 1) * per_node] for index in range(count)]
    split = max(1.0, config.placement.rollout_gpus)  # an engine over several GPUs is one engine

    def workers(index: int, part: list[Shared]) -> Workers:
        has_all = index == 0
        return Workers(
            math.ceil(sum(gpu.engines for gpu in part) / split) if config.placement.rollout_gpus else has_all * engines,
            sum(gpu.learners for gpu in part) if config.placement.learner_gpus else has_all * learners,
            has_all * rewards,
            has_driver=has_all,
        )

    return [workers(index, part) for index, part in enumerate(parts)]


def _gpu_name(gpu: Shared) -> str:
    parts = [
        f"{count} {kind}{'s' if count > 1 else ''}"
        for count, kind in ((gpu.engines, "engine"), (gpu.learners, "learner rank"))
        if count
    ]
    return f"GPU with {' and '.join(parts)}"


def _of(count: int, name: str) -> str:
    return f"learner: {name}" if count == 1 else f"{count} learners: {name}"
