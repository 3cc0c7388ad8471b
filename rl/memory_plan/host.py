"""What a run takes in the main memory of a node, beside what lies on its GPUs.

Legend: b bytes of a value.
"""

from __future__ import annotations

from dataclasses import dataclass

from rl.config.run import RunConfig, weight_transport
from rl.memory_plan.engine import EngineMemory
from rl.memory_plan.learner import ITEMSIZE, LearnerMemory
from rl.memory_plan.links import link_memory
from rl.memory_plan.record import GIB, GivenUp, Item, items
from rl.memory_plan.trajectory import longest_trajectory, packed_values, stored_values
from rl.policy.structure import Structure, Tower

DRIVER = 1.0 * GIB  # the run's own process, and Ray's
REWARDS = 0.25 * GIB  # a reward worker, before the user's own code
ENGINE_PROCESS = {True: 4.0 * GIB, False: 1.2 * GIB}  # with CUDA's libraries, and without
LEARNER_PROCESS = {True: 3.0 * GIB, False: 0.7 * GIB}
DECODER = 0.4 * GIB  # a decoding process at work; its limit is video.decode_memory_mib
PINNED = 2  # torch pins memory in powers of two: at most twice what is asked for
FLOAT32 = 4
MASTERS_AND_MOMENTS = 12  # bytes per trained parameter in a checkpoint


@dataclass(frozen=True, slots=True)
class Workers:
    """How many of each kind a node has."""

    engines: int
    learners: int
    rewards: int
    has_driver: bool = True


def node_items(
    config: RunConfig,
    structure: Structure,
    workers: Workers,
    learner: LearnerMemory,
    engine: EngineMemory,
    given_up: GivenUp | None,
) -> tuple[Item, ...]:
    """What lies in a node's main memory at the worst moment: a step learns while a checkpoint is being written.

    Loading is no such moment: weights are mapped from their files and go to the GPUs a parameter at a time.

    Args:
        learner, engine: of one worker; what they hold on a GPU is not counted here.
    """
    return items(
        [
            *_processes(config, workers, structure.tower),
            *_at_work(config, structure, workers, learner, engine),
            *_given_up(config, workers, learner, engine, given_up),
        ]
    )


def _processes(config: RunConfig, workers: Workers, tower: Tower) -> list[tuple[str, float]]:
    """What is there all the time."""
    engines, placement = workers.engines, config.placement
    return [
        ("processes of engines", engines * ENGINE_PROCESS[bool(placement.rollout_gpus)]),
        ("processes of learners", workers.learners * LEARNER_PROCESS[bool(placement.learner_gpus)]),
        ("rewards, driver and Ray", workers.rewards * REWARDS + workers.has_driver * DRIVER),
        ("frame caches", engines * config.video.frame_cache_bytes),
        ("decoding processes", engines * config.video.decode_workers * DECODER),
        ("features that frames are compared by", engines * compared_by(config, tower)),
        ("processed frames kept by engines", engines * config.rollout.engine.mm_cache_gib * GIB),
    ]


def compared_by(config: RunConfig, tower: Tower) -> int:
    """Bytes of what a process that cuts videos into scenes compares frames by."""
    return tower.feature_parameters * FLOAT32 if config.policy.scenes.difference == "features" else 0


def _at_work(
    config: RunConfig, structure: Structure, workers: Workers, learner: LearnerMemory, engine: EngineMemory
) -> list[tuple[str, float]]:
    placement, itemsize = config.placement, ITEMSIZE[config.policy.dtype]
    longest = longest_trajectory(config, structure.tower)
    trained = structure.trained(freeze_vision=config.learner.freeze_vision, lora=config.policy.lora)
    policy = structure.parameters * itemsize
    engines, ranks = workers.engines, workers.learners
    share = ranks / config.learner.num_ranks
    kept = config.learner.vision_cache_bytes if config.learner.freeze_vision else 0
    named = [
        ("frames in the object store", stored_values(config, longest)),
        ("packed micro-batches", ranks * packed_values(config, longest) * (PINNED if placement.learner_gpus else 1)),
        ("features of the frozen vision tower", ranks * kept),
        ("weights on their way to engines", policy + 2 * config.weight_sync.bucket_bytes if ranks else 0),
        ("a checkpoint until it is written", share * (trained * MASTERS_AND_MOMENTS + policy)),
        ("CPU offload of the optimizer", ranks * learner.zero.host),
    ]
    if not placement.learner_gpus:
        named += [(f"learners: {item.name}", ranks * item.num_bytes) for item in learner.peak()]
    if not (placement.learner_gpus or placement.rollout_gpus):
        link = link_memory(config, structure, itemsize)
        senders = min(ranks, engines) if weight_transport(config) == "ipc" else min(ranks, 1)
        named.append(("buffers of links to engines", senders * link.sender + engines * link.receiver))
    if not placement.rollout_gpus:
        named += [
            ("engines: weights", engines * engine.weights),
            ("engines: KV cache", engines * config.rollout.engine.kv_cache_bytes),
            ("engines: prefill", engines * engine.working),
        ]
    return named


def _given_up(
    config: RunConfig, workers: Workers, learner: LearnerMemory, engine: EngineMemory, given_up: GivenUp | None
) -> list[tuple[str, float]]:
    """What comes here from GPUs on which engines and learners take turns."""
    if given_up is None or not config.placement.rollout_gpus:
        return []
    named = []
    if not given_up.weights:
        named += [("weights of engines that sleep", workers.engines * engine.weights)]
    if given_up.states:
        moved = workers.learners * learner.zero.masters_and_moments
        named += [("masters and moments while engines sample", moved)]
    return named
