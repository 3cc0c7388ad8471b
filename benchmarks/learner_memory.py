"""What the memory plan of `dynframe check` says of one rank on one GPU, to stand beside what is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rl.config.learner import LearnerConfig
from rl.learner.settings import deepspeed_settings
from rl.memory_plan.activations import MicroBatch, activations
from rl.memory_plan.gpus import USABLE
from rl.memory_plan.learner import ITEMSIZE, LearnerMemory
from rl.memory_plan.zero import Parameters, zero_memory
from rl.policy.structure import Structure
from rl.trajectory import TrainingSample

DTYPE = "bfloat16"


def micro_batch_of(samples: Sequence[TrainingSample], visual_tokens: int) -> MicroBatch:
    """One micro-batch of trajectories that share nothing but videos.

    Args:
        visual_tokens: of all its distinct videos.
    """
    videos = {frames.digest: frames for sample in samples for frames in sample.videos}.values()
    return MicroBatch(
        tokens=sum(len(sample.token_ids) for sample in samples),
        visual_tokens=visual_tokens,
        frames_values=sum(frames.num_frames * frames.height * frames.width * 3 for frames in videos),
        scored=sum(sum(sample.loss_mask) for sample in samples),
    )


def planned_bytes(
    structure: Structure, config: LearnerConfig, batch: MicroBatch, *, recompute: bool, reference: bool
) -> float:
    """At the worst moment of an update, of what torch's counters see: CUDA's own memory is no part of it.

    Args:
        recompute: activation checkpointing.
        reference: a reference policy is there too.
    """
    language, frozen = structure.language, config.freeze_vision
    trained, itemsize = structure.trained(freeze_vision=frozen), ITEMSIZE[DTYPE]
    largest = max(language.embedding, language.layer_parameters)
    parameters = Parameters(trained, structure.parameters - trained, language.embedding, largest)
    memory = LearnerMemory(
        zero_memory(parameters, 1, itemsize, deepspeed_settings(config, DTYPE, trained), cuda=True),
        activations(
            structure,
            batch,
            itemsize,
            recomputes_language=recompute,
            recomputes_vision=recompute,
            freeze_vision=frozen,
        ),
        structure.parameters * itemsize if reference else 0.0,
        context=0.0,
    )
    return sum(item.num_bytes for item in memory.peak())


def layers_that_fit(structure: Structure, config: LearnerConfig, batch: MicroBatch, free_bytes: float) -> int:
    """As many of the language model's layers as one rank can train in so much memory, activations recomputed."""
    for layers in range(structure.language.layers, 1, -1):
        cut = replace(structure, language=replace(structure.language, layers=layers))
        if planned_bytes(cut, config, batch, recompute=True, reference=False) <= USABLE * free_bytes:
            return layers
    return 1
