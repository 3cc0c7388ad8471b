"""How large a trajectory or a conversation, and a micro-batch of them, can become under a configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rl.config.data import SPAN_FPS, ZOOM
from rl.config.run import RunConfig
from rl.memory_plan.activations import MicroBatch
from rl.policy.structure import Tower

FRAMES_PER_SCENE = {"fixed": 2, "fixed6": 6}  # of modes in which it is always the same


@dataclass(frozen=True, slots=True)
class Longest:
    """The longest trajectory, or conversation."""

    tokens: int  # T
    visual_tokens: int  # of its coarse frames and its looks
    coarse_values: int  # pixel values, a byte each where frames are stored
    look_values: int  # of all its looks


def longest_trajectory(config: RunConfig, tower: Tower) -> Longest:
    """As long as the engine's context, with as many frames and pixels as the settings and that context allow.

    Frames are granted as if each were a scene of its own; `policy.scenes` then says how few tokens they become.
    """
    if config.only_finetunes:
        return _longest_conversation(config, tower)
    coarse, looks = config.video.coarse, config.retrieval
    unit, context = tower.unit**2, config.rollout.engine.max_model_len
    room = max(0, context - config.rollout.max_new_tokens) * unit
    coarse_pixels = min(coarse.max_frames * coarse.max_pixels, coarse.max_visual_tokens * unit, room)
    window = looks.max_frames * looks.max_pixels if SPAN_FPS in looks.tools else 0
    image = looks.zoom_max_pixels if ZOOM in looks.tools else 0  # one scene
    look_pixels = min(looks.max_calls * max(window, image), room - coarse_pixels)
    visual = (coarse_pixels + look_pixels) // unit // _frames_per_scene(config)
    return Longest(context, visual, 3 * coarse_pixels, 3 * look_pixels)


def micro_batch(config: RunConfig, longest: Longest) -> MicroBatch:
    """The largest micro-batch: of siblings, as far as there are so many, with nothing in common but coarse frames.

    Without shared prefixes it is filled by length, whoever belongs together: as many groups may be met as there are.
    """
    if config.only_finetunes:
        return _conversations(config, longest)
    rows = _longest_rows(config, longest)
    groups = _groups_of(config, rows)
    most = min(config.learner.micro_batch, _samples_per_update(config))  # short ones
    scored = config.rollout.max_new_tokens * most
    values = groups * longest.coarse_values + rows * longest.look_values
    tokens_per_value = longest.visual_tokens / max(1, longest.coarse_values + longest.look_values)
    return MicroBatch(longest.tokens * rows, round(values * tokens_per_value), values, scored)


def shared_visual_tokens(config: RunConfig, longest: Longest) -> int:
    """Visual tokens of a rank's blocks that several micro-batches of an optimizer step show, where those are encoded
    once (rl.learner.shared_videos): coarse frames of groups that are cut, or, without shared prefixes, scattered."""
    learner, most = config.learner, _most_trajectories(config, longest)
    if learner.freeze_vision or learner.sequence_parallel > 1 or config.only_finetunes:
        return 0
    scatters = learner.shared_prefix == "off" and most < _samples_per_update(config)
    if most >= config.rollout.group_size and not scatters:
        return 0
    coarse = longest.coarse_values / max(1, longest.coarse_values + longest.look_values)
    return round(longest.visual_tokens * coarse) * _groups_per_update(config)


def shared_graph(config: RunConfig, longest: Longest) -> float:
    """How much of a tower's activations is kept while the language model goes backward, as a multiple of those of all
    blocks that the largest micro-batch shows.

    The graph of blocks that micro-batches have in common lasts until the step's end where it is no larger than a
    micro-batch's (rl.learner.shared_videos); else it is made at the end, and gone as soon. Beside it there is that of
    the blocks which only one micro-batch shows.
    """
    learner, rows = config.learner, _longest_rows(config, longest)
    looks, shared = rows * longest.look_values, _groups_per_update(config) * longest.coarse_values
    values = _groups_of(config, rows) * longest.coarse_values + looks
    if not shared_visual_tokens(config, longest):
        return 1.0
    is_kept = shared <= values and not (learner.recomputes_vision or learner.zero_stage == 3)
    return (looks + shared * is_kept) / values


def packed_values(config: RunConfig, longest: Longest) -> int:
    """Bytes of patches of two micro-batches of one rank: one is at work while the next is made."""
    rows = min(2 * _most_trajectories(config, longest), _samples_per_update(config))
    coarse = max(min(2, rows), math.ceil(rows / config.rollout.group_size))
    return coarse * longest.coarse_values + rows * longest.look_values


def stored_values(config: RunConfig, longest: Longest) -> int:
    """Bytes of frames in the object store, of all groups of a step."""
    siblings = config.rollout.group_size * longest.look_values
    return config.rollout.tasks_per_step * (longest.coarse_values + siblings)


def _longest_conversation(config: RunConfig, tower: Tower) -> Longest:
    """As long as a sample may be, and as visual as one block may be; frames are scenes of their own."""
    coarse, unit = config.video.coarse, tower.unit**2
    clip = min(coarse.max_visual_tokens, coarse.max_frames * coarse.max_pixels // unit)
    visual = min(config.finetune.max_tokens, max(clip, config.finetune.image_pixels // unit))
    return Longest(config.finetune.max_tokens, visual, 3 * unit * visual, 0)


def _conversations(config: RunConfig, longest: Longest) -> MicroBatch:
    """The largest micro-batch of them: packing fills it with shorter ones, all of which may be visual and learned."""
    learner = config.learner
    most = min(learner.micro_batch, math.ceil(config.finetune.batch_size / learner.sequence_groups))
    tokens = longest.tokens * most
    if learner.micro_tokens:
        tokens = min(tokens, max(learner.micro_tokens, longest.tokens))
    visual = min(tokens, longest.visual_tokens * most)
    return MicroBatch(tokens, visual, visual * longest.coarse_values // longest.visual_tokens, scored=tokens)


def _most_trajectories(config: RunConfig, longest: Longest) -> int:
    """Of the longest ones, in one micro-batch."""
    learner = config.learner
    within = max(1, learner.micro_tokens // longest.tokens) if learner.micro_tokens else learner.micro_batch
    return min(learner.micro_batch, within)


def _samples_per_rank(config: RunConfig) -> int:
    return config.rollout.tasks_per_step // config.learner.sequence_groups * config.rollout.group_size


def _samples_per_update(config: RunConfig) -> int:
    return math.ceil(_samples_per_rank(config) / config.learner.updates_per_step)


def _longest_rows(config: RunConfig, longest: Longest) -> int:
    """Of the longest trajectories, in a micro-batch of what a rank has."""
    return min(_most_trajectories(config, longest), _samples_per_update(config))


def _groups_of(config: RunConfig, rows: int) -> int:
    """Groups that so many trajectories of a micro-batch are of, at most."""
    if config.learner.shared_prefix == "off":
        return min(rows, _groups_per_update(config))
    return math.ceil(rows / config.rollout.group_size)


def _groups_per_update(config: RunConfig) -> int:
    return math.ceil(_samples_per_update(config) / config.rollout.group_size)


def _frames_per_scene(config: RunConfig) -> int:
    """The fewest frames that a scene has on the average of a block."""
    scenes = config.policy.scenes
    return FRAMES_PER_SCENE.get(scenes.mode, 2 if scenes.budget == "pairs" else 1)
