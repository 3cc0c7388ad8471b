"""Which activations a learner may recompute, the cheapest choice first."""

from __future__ import annotations

import math

from rl.config.learner import AUTO
from rl.config.run import RunConfig
from rl.memory_plan.trajectory import longest_trajectory, micro_batch, shared_visual_tokens
from rl.policy.flops import VideoShape, Workload, recomputation_flops, tower_flops
from rl.policy.structure import Structure


def choices(config: RunConfig, structure: Structure, gpu_gib: float) -> tuple[str, ...]:
    """Values of learner.activation_checkpointing to be tried, in order of what they compute once more; each of them
    alone where it is given, or where nothing tells what a learner's GPU holds.

    Args:
        gpu_gib: of a GPU; 0: it is not known.
    """
    given, learner = config.learner.activation_checkpointing, config.learner
    if given != AUTO:
        return (given,)
    if not (config.placement.learner_gpus and gpu_gib):
        return ("none",)
    if learner.freeze_vision or config.policy.lora.freezes_tower:
        return ("none", "language")
    language, vision = recomputed_flops(config, structure)
    return ("none", *(("vision", "language") if vision <= language else ("language", "vision")), "all")


def recomputed_flops(config: RunConfig, structure: Structure) -> tuple[int, int]:
    """Operations that recomputing the language model's layers, and the tower's blocks, adds to the largest micro-batch.

    Where micro-batches have blocks in common, a tower that is recomputed keeps no graph of them either: it runs whole
    once more (rl.learner.shared_videos).
    """
    longest = longest_trajectory(config, structure.tower)
    batch = micro_batch(config, longest)
    rows = batch.tokens // longest.tokens
    video = _as_one_video(config, structure, batch.visual_tokens)
    language, vision = recomputation_flops(structure, Workload(batch.tokens, rows * longest.tokens**2, 0, (video,)))
    if shared_visual_tokens(config, longest) and config.learner.zero_stage != 3:
        vision += tower_flops(structure.tower, video)
    return language, vision


def _as_one_video(config: RunConfig, structure: Structure, visual_tokens: int) -> VideoShape:
    """So many visual tokens as scenes of one frame, square and as large as coarse frames may be."""
    unit = structure.tower.unit
    side = max(1, math.isqrt(config.video.coarse.max_pixels) // unit)
    return VideoShape((1,) * math.ceil(visual_tokens / side**2), side * unit, side * unit)
