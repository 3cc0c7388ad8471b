"""How large a trajectory, and a micro-batch of them, can become under a configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rl.config.run import RunConfig
from rl.memory_plan.activations import MicroBatch
from rl.policy.structure import Tower

FRAMES_PER_SCENE = {"fixed": 2, "fixed6": 6}  # of modes in which it is always the same


@dataclass(frozen=True, slots=True)
class Longest:
    """The longest trajectory."""

    tokens: int  # T
    visual_tokens: int  # of its coarse frames and its looks
    coarse_values: int  # pixel values, a byte each where frames are stored
    look_values: int  # of all its looks


def longest_trajectory(config: RunConfig, tower: Tower) -> Longest:
    """As long as the engine's context, with as many frames and pixels as the settings and that context allow.

    Frames are granted as if each were a scene of its own; `policy.scenes` then says how few tokens they become.
    """
    coarse, looks = config.video.coarse, config.retrieval
    unit, context = tower.unit**2, config.rollout.engine.max_model_len
    room = max(0, context - config.rollout.max_new_tokens) * unit
    coarse_pixels = min(coarse.max_frames * coarse.max_pixels, coarse.max_visual_tokens * unit, room)
    look_pixels = min(looks.max_calls * looks.max_frames * looks.max_pixels, room - coarse_pixels)
    visual = (coarse_pixels + look_pixels) // unit // _frames_per_scene(config)
    return Longest(context, visual, 3 * coarse_pixels, 3 * look_pixels)


def micro_batch(config: RunConfig, longest: Longest, *, siblings: int) -> MicroBatch:
    """The largest micro-batch: of siblings, as far as there are so many, with nothing in common but coarse frames.

    Args:
        siblings: trajectories that a rank has of one group.
    """
    rows = min(_most_trajectories(config, longest), _samples_per_update(config))
    groups = math.ceil(rows / siblings)
    most = min(config.learner.micro_batch, _samples_per_update(config))  # short ones
    scored = config.rollout.max_new_tokens * most
    values = groups * longest.coarse_values + rows * longest.look_values
    tokens_per_value = longest.visual_tokens / max(1, longest.coarse_values + longest.look_values)
    return MicroBatch(longest.tokens * rows, round(values * tokens_per_value), values, scored)


def cuts_groups(config: RunConfig, longest: Longest) -> bool:
    """Whether micro-batches hold fewer of the longest trajectories than a group has: they have its blocks in common."""
    return _most_trajectories(config, longest) < config.rollout.group_size


def packed_values(config: RunConfig, longest: Longest) -> int:
    """Bytes of patches of two micro-batches of one rank: one is at work while the next is made."""
    rows = min(2 * _most_trajectories(config, longest), _samples_per_update(config))
    coarse = max(min(2, rows), math.ceil(rows / config.rollout.group_size))
    return coarse * longest.coarse_values + rows * longest.look_values


def stored_values(config: RunConfig, longest: Longest) -> int:
    """Bytes of frames in the object store, of all groups of a step."""
    siblings = config.rollout.group_size * longest.look_values
    return config.rollout.tasks_per_step * (longest.coarse_values + siblings)


def _most_trajectories(config: RunConfig, longest: Longest) -> int:
    """Of the longest ones, in one micro-batch."""
    learner = config.learner
    within = max(1, learner.micro_tokens // longest.tokens) if learner.micro_tokens else learner.micro_batch
    return min(learner.micro_batch, within)


def _samples_per_rank(config: RunConfig) -> int:
    return config.rollout.tasks_per_step // config.learner.sequence_groups * config.rollout.group_size


def _samples_per_update(config: RunConfig) -> int:
    return math.ceil(_samples_per_rank(config) / config.learner.updates_per_step)


def _frames_per_scene(config: RunConfig) -> int:
    """The fewest frames that a scene has on the average of a block."""
    scenes = config.policy.scenes
    return FRAMES_PER_SCENE.get(scenes.mode, 2 if scenes.budget == "pairs" else 1)
