"""What a learner rank takes on its device, at the moment when it takes most: starting, going backward, or stepping.

Legend: b bytes of a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rl.config.policy import LoraConfig
from rl.config.run import RunConfig
from rl.memory_plan.activations import Activations, activations
from rl.memory_plan.engine import CONTEXT_BYTES
from rl.memory_plan.links import link_memory
from rl.memory_plan.record import Item, items
from rl.memory_plan.trajectory import longest_trajectory, micro_batch, shared_graph, shared_visual_tokens
from rl.memory_plan.zero import Parameters, ZeroMemory, zero_memory
from rl.policy.structure import Structure

ITEMSIZE = {"float32": 4, "bfloat16": 2}
FLOAT = 4


@dataclass(frozen=True, slots=True)
class LearnerMemory:
    """A rank's memory: the parts, of which not all are there at once."""

    zero: ZeroMemory
    activations: Activations
    reference: float  # the frozen policy of the divergence, cut up at ZeRO 3, else whole on every rank; 0: none
    context: float  # CUDA's
    link: float = 0.0  # buffers of the link to the engines
    shared_videos: float = 0.0  # tokens of blocks that micro-batches have in common, and their gradients

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
        """A micro-batch's backward pass: at its beginning, when the first bucket of gradients is reduced, or when it
        has come to the vision tower."""
        moments = (
            self._backward(0.0, 0.0),
            self._backward(self.zero.until_full, self.zero.reducing),
            self._backward_of_tower(),
        )
        return max(moments, key=_total)

    def _backward(self, done: float, reducing: float) -> tuple[Item, ...]:
        """When so much of it is done: the moments of earlier steps are there, and the gradients of earlier passes."""
        working = max(self.activations.layer, self.activations.logits)
        at_work = "logits of the chunk at work" if working == self.activations.logits else "the layer at work"
        return items(
            [
                *self._of_gradients(reducing),
                ("activations", (1 - done) * self.activations.kept),
                ("activations of the vision tower", self.activations.tower),
                (at_work, working),
            ]
        )

    def _backward_of_tower(self) -> tuple[Item, ...]:
        """When its last block is at work: nothing of the language model is kept any more."""
        return items(
            [
                *self._of_gradients(self.zero.reducing),
                ("activations of the vision tower, and its block at work", self.activations.tower_backward),
            ]
        )

    def _of_gradients(self, reducing: float) -> list[tuple[str, float]]:
        return [
            *self._kept(),
            ("gathered weights", self.zero.gathered),
            ("gradients", self.zero.gradients),
            ("gradient buckets", self.zero.buckets + reducing),
        ]

    def stepping(self) -> tuple[Item, ...]:
        """The optimizer's step."""
        return items([*self._kept(), ("gradients in float32, and AdamW's own", self.zero.stepping)])

    def waiting(self, *, offloaded: bool) -> tuple[Item, ...]:
        """While engines sample (placement.share_gpus=turns)."""
        if not offloaded:
            return items([*self._kept(), ("gradients", self.zero.gradients), ("gradient buckets", self.zero.buckets)])
        left = {"weights", "reference policy", "buffers of the link to engines", "CUDA and NCCL"}
        return items([(name, num_bytes) for name, num_bytes in self._kept() if name in left])

    def _kept(self) -> list[tuple[str, float]]:
        return [
            ("weights", self.zero.weights),
            ("masters and moments", self.zero.masters_and_moments),
            ("reference policy", self.reference),
            ("tokens of videos that micro-batches share", self.shared_videos),
            ("buffers of the link to engines", self.link),
            ("CUDA and NCCL", self.context),
        ]


def learner_memory(
    config: RunConfig, structure: Structure, settings: Mapping[str, Any], *, cuda: bool
) -> LearnerMemory:
    """Of one rank on its device.

    Args:
        settings: DeepSpeed's, as rl.learner.settings makes them.
    """
    learner, lora, itemsize = config.learner, config.policy.lora, ITEMSIZE[config.policy.dtype]
    trained = structure.trained(freeze_vision=learner.freeze_vision, lora=lora)
    frozen = structure.parameters + structure.updates(lora) - trained
    largest, layer = _largest(structure, lora)
    parameters = Parameters(trained, frozen, largest, max(largest, layer))
    longest = longest_trajectory(config, structure.tower)
    kept = activations(
        structure,
        micro_batch(config, longest),
        itemsize,
        recomputes_language=learner.recomputes_language,
        recomputes_vision=learner.recomputes_vision,
        freeze_vision=learner.freeze_vision,
        sequence_parallel=learner.sequence_parallel,
    )
    kept = replace(kept, tower=kept.tower * shared_graph(config, longest))
    return LearnerMemory(
        zero_memory(parameters, learner.num_ranks, itemsize, settings, cuda=cuda),
        kept,
        _reference(config, structure.parameters * itemsize),
        CONTEXT_BYTES if cuda else 0.0,
        link_memory(config, structure, itemsize).sender if cuda else 0.0,
        shared_visual_tokens(config, longest)
        * structure.language.hidden
        * (1 + structure.tower.levels)
        * (2 * FLOAT + itemsize),
    )


def _largest(structure: Structure, lora: LoraConfig) -> tuple[int, int]:
    """Elements of the largest parameter that is trained, and of those of a layer."""
    language = structure.language
    if not lora.rank:
        return language.embedding, language.layer_parameters
    table = language.embedding if {"lm_head", "embed_tokens"} & set(lora.full) else 0
    widest = max(max(sides) for sides in language.products.values())
    return max(table, lora.rank * widest), structure.updates(lora) // language.layers


def _reference(config: RunConfig, whole: float) -> float:
    lora = config.policy.lora
    is_the_policy = lora.rank > 0 and not lora.full  # in training, without its updates
    if not config.algorithm.loss.kl_beta or config.only_finetunes or is_the_policy:
        return 0.0
    return whole / config.learner.num_ranks if config.learner.zero_stage == 3 else whole


def _total(parts: tuple[Item, ...]) -> float:
    return sum(item.num_bytes for item in parts)
