"""What a learner rank takes on its device, at the moment when it takes most: starting, going backward, or stepping.

Legend: b bytes of a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rl.config.run import RunConfig
from rl.memory_plan.activations import Activations, activations
from rl.memory_plan.engine import CONTEXT_BYTES
from rl.memory_plan.record import Item, items
from rl.memory_plan.trajectory import cuts_groups, longest_trajectory, micro_batch
from rl.memory_plan.zero import Parameters, ZeroMemory, zero_memory
from rl.policy.structure import Structure

ITEMSIZE = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class LearnerMemory:
    """A rank's memory: the parts, of which not all are there at once."""

    zero: ZeroMemory
    activations: Activations
    reference: float  # the frozen policy of the divergence, cut up at ZeRO 3, else whole on every rank; 0: none
    context: float  # CUDA's

    def peak(self) -> tuple[Item, ...]:
        """What is there at the worst moment."""
        return max((self.loading(), self.backward(), self.stepping()), key=_total)

    def loading(self) -> tuple[Item, ...]:
        """The start: weights laid end to end, before there are masters and moments."""
        zero = self.zero
        return items(
            [("weights", zero.weights), ("weights while they load", zero.loading), ("CUDA and NCCL", self.context)]
        )

    def backward(self) -> tuple[Item, ...]:
        """A micro-batch's backward pass: at its beginning, or when the first bucket of gradients is reduced."""
        return max(self._backward(0.0, 0.0), self._backward(self.zero.until_full, self.zero.reducing), key=_total)

    def _backward(self, done: float, reducing: float) -> tuple[Item, ...]:
        """When so much of it is done: the moments of earlier steps are there, and the gradients of earlier passes."""
        working = max(self.activations.layer, self.activations.logits)
        at_work = "logits of the chunk at work" if working == self.activations.logits else "the layer at work"
        return items(
            [
                *self._kept(),
                ("gathered weights", self.zero.gathered),
                ("gradients", self.zero.gradients),
                ("gradient buckets", self.zero.buckets + reducing),
                ("activations", (1 - done) * self.activations.kept),
                ("activations of the vision tower", self.activations.tower),
                (at_work, working),
            ]
        )

    def stepping(self) -> tuple[Item, ...]:
        """The optimizer's step."""
        return items([*self._kept(), ("gradients in float32, and AdamW's own", self.zero.stepping)])

    def offloaded(self) -> tuple[Item, ...]:
        """While engines have the GPU to themselves (placement.share_gpus=turns)."""
        left = [("weights", self.zero.weights), ("reference policy", self.reference), ("CUDA and NCCL", self.context)]
        return items(left)

    def _kept(self) -> list[tuple[str, float]]:
        return [
            ("weights", self.zero.weights),
            ("masters and moments", self.zero.masters_and_moments),
            ("reference policy", self.reference),
            ("CUDA and NCCL", self.context),
        ]


def learner_memory(
    config: RunConfig, structure: Structure, settings: Mapping[str, Any], *, cuda: bool
) -> LearnerMemory:
    """Of one rank on its device.

    Args:
        settings: DeepSpeed's, as rl.learner.settings makes them.
    """
    learner, itemsize = config.learner, ITEMSIZE[config.policy.dtype]
    trained = structure.trained(freeze_vision=learner.freeze_vision)
    largest, layer = structure.language.embedding, structure.language.layer_parameters
    parameters = Parameters(trained, structure.parameters - trained, largest, max(largest, layer))
    longest = longest_trajectory(config, structure.tower)
    batch = micro_batch(config, longest, siblings=config.rollout.group_size)
    kept = activations(
        structure,
        batch,
        itemsize,
        checkpointing=learner.activation_checkpointing,
        freeze_vision=learner.freeze_vision,
        sequence_parallel=learner.sequence_parallel,
    )
    is_apart = learner.freeze_vision or learner.activation_checkpointing or learner.zero_stage == 3
    if cuts_groups(config, longest) and not is_apart and learner.sequence_parallel == 1:
        # the graph of blocks that micro-batches have in common lasts until the step's end (rl.learner.shared_videos)
        kept = replace(kept, tower=2 * kept.tower)
    return LearnerMemory(
        zero_memory(parameters, learner.num_ranks, itemsize, settings, cuda=cuda),
        kept,
        _reference(config, structure.parameters * itemsize),
        CONTEXT_BYTES if cuda else 0.0,
    )


def _reference(config: RunConfig, whole: float) -> float:
    if not config.algorithm.loss.kl_beta:
        return 0.0
    return whole / config.learner.num_ranks if config.learner.zero_stage == 3 else whole


def _total(parts: tuple[Item, ...]) -> float:
    return sum(item.num_bytes for item in parts)
