"""The memory plan of a fine-tuning run: learner ranks, and the processes that make their samples.

Legend: b bytes of a value.
"""

from __future__ import annotations

from rl.config.run import RunConfig
from rl.learner.settings import deepspeed_settings
from rl.memory_plan.gpus import USABLE
from rl.memory_plan.host import DECODER, DRIVER, LEARNER_PROCESS, MASTERS_AND_MOMENTS, compared_by
from rl.memory_plan.learner import ITEMSIZE, LearnerMemory, learner_memory
from rl.memory_plan.record import GIB, Item, MemoryPlan, Place, items
from rl.memory_plan.trajectory import longest_trajectory, micro_batch
from rl.policy.structure import Structure

SAMPLE_PROCESS = 0.6 * GIB  # that reads images and decodes videos, before a decoding process
BATCHES = 2  # whose pixels are in the object store: one is learned from while the next is made


def finetune_plan(
    config: RunConfig, structure: Structure, *, gpu_gib: float, gpu_name: str, per_node: int, node: tuple
) -> MemoryPlan:
    """Of a fine-tuning run.

    Args:
        gpu_gib: of each GPU; 0: not known.
        per_node: GPUs of a node.
        node: (bytes of main memory that a run may take on a node or None, how that is known).
    Raises:
        ConfigError: `learner.deepspeed_config` cannot be read.
    """
    ranks, on_gpu = config.learner.num_ranks, bool(config.placement.learner_gpus)
    trained = structure.trained(freeze_vision=config.learner.freeze_vision)
    settings = deepspeed_settings(config.learner, config.policy.dtype, trained, on_cuda=on_gpu)
    learner = learner_memory(config, structure, settings, cuda=on_gpu)
    here = min(ranks, per_node) if on_gpu else ranks
    places = [_node(config, structure, learner, here, *node, is_one_of_several=here < ranks)]
    if on_gpu:
        held = tuple(Item(f"learner: {item.name}", item.num_bytes) for item in learner.peak())
        places.insert(0, Place("GPU with 1 learner rank", held, gpu_gib * GIB * USABLE or None, gpu_name, ranks))
    return MemoryPlan(tuple(places), learners_fit=all(place.fits for place in places[: int(on_gpu)]))


def _node(
    config: RunConfig,
    structure: Structure,
    learner: LearnerMemory,
    ranks: int,
    capacity: float | None,
    known: str,
    *,
    is_one_of_several: bool,
) -> Place:
    """The node that holds most: that of the driver."""
    placement, policy = config.placement, structure.parameters * ITEMSIZE[config.policy.dtype]
    trained = structure.trained(freeze_vision=config.learner.freeze_vision)
    share, workers = ranks / config.learner.num_ranks, config.finetune.num_workers
    kept = config.learner.vision_cache_bytes if config.learner.freeze_vision else 0
    longest = longest_trajectory(config, structure.tower)
    batch = micro_batch(config, longest)
    held = [
        ("processes of learners", ranks * LEARNER_PROCESS[bool(placement.learner_gpus)]),
        ("processes that make samples", workers * (SAMPLE_PROCESS + config.video.decode_workers * DECODER)),
        ("features that frames are compared by", workers * compared_by(config, structure.tower)),
        ("driver and Ray", DRIVER),
        ("frames in the object store", BATCHES * config.finetune.batch_size * longest.coarse_values),
        ("packed micro-batches", ranks * 2 * batch.frames_values),
        ("features of the frozen vision tower", ranks * kept),
        ("a checkpoint until it is written", share * (trained * MASTERS_AND_MOMENTS + policy)),
        ("CPU offload of the optimizer", ranks * learner.zero.host),
    ]
    if not placement.learner_gpus:
        held += [(f"learners: {item.name}", ranks * item.num_bytes) for item in learner.peak()]
    return Place("the fullest node" if is_one_of_several else "the machine", items(held), capacity, known)
