"""The floating-point operations that learning takes, counted from a policy's structure. No torch.

A multiply with its addition is two. Attention counts in full although a causal mask leaves half of it out; what is done
element by element (norms, activations, softmax, rotary positions) and activations that are recomputed do not count:
that is what MFU is a share of. A product costs once more in the backward pass for the gradient of its input, and once
more for that of its weight.

Legend: E hidden size · n patches of one frame.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rl.config.policy import LoraConfig
from rl.policy.structure import NO_LORA, Language, Structure, Tower

FORWARD_AND_BACKWARD = 3  # of what has a gradient: forward, by input, by weight
WEIGHT_FROZEN = 2  # where only the input has one


@dataclass(frozen=True, slots=True)
class VideoShape:
    """What a vision tower reads of one video block."""

    scene_lengths: tuple[int, ...]  # frames
    height: int  # pixels
    width: int


@dataclass(frozen=True, slots=True)
class Workload:
    """What one forward pass over trajectories computes; what several share counts once."""

    tokens: int  # of the language model
    pairs: int  # of tokens in one sequence: its length squared
    scored: int  # tokens whose log-probs are taken
    videos: tuple[VideoShape, ...] = ()  # through the tower


def training_flops(
    structure: Structure, work: Workload, *, freeze_vision: bool, reference: bool = False, lora: LoraConfig = NO_LORA
) -> int:
    """Forward and backward; with a reference policy, its forward pass too.

    Args:
        freeze_vision: the tower is not trained, but for its mergers.
    """
    products, attention, head = _language_parts(structure.language, work)
    of_videos = [_tower_parts(structure.tower, video) for video in work.videos]
    embed, blocks, mergers = (sum(parts) for parts in zip((0, 0, 0), *of_videos, strict=True))
    forward = products + attention + head + embed + blocks + mergers
    if lora.rank:
        trained = _with_lora(structure, work, lora, (products, attention, head), (embed, blocks, mergers))
    else:
        tower = (
            embed + blocks if freeze_vision else 2 * embed + FORWARD_AND_BACKWARD * blocks
        )  # pixels have no gradient
        trained = FORWARD_AND_BACKWARD * (products + attention + head + mergers) + tower
    return trained + (forward if reference else 0)


def _with_lora(
    structure: Structure,
    work: Workload,
    lora: LoraConfig,
    language: tuple[int, int, int],
    tower: tuple[int, int, int],
) -> int:
    """Weights that are frozen have no gradient, the inputs of their products do (counted also for those few of the
    first layer that need none)."""
    (products, attention, head), (embed, blocks, mergers) = language, tower
    patches = sum(
        len(video.scene_lengths) * (video.height // structure.tower.patch) * (video.width // structure.tower.patch)
        for video in work.videos
    )
    updates = 2 * (work.tokens * structure.language_updates(lora) + patches * structure.tower_updates(lora))
    by_head = FORWARD_AND_BACKWARD if "lm_head" in lora.full else WEIGHT_FROZEN
    by_merger = FORWARD_AND_BACKWARD if "merger" in lora.full else 1 if lora.freezes_tower else WEIGHT_FROZEN
    by_block = 1 if lora.freezes_tower else WEIGHT_FROZEN
    return (
        WEIGHT_FROZEN * products
        + FORWARD_AND_BACKWARD * (attention + updates)
        + by_head * head
        + by_merger * mergers
        + by_block * blocks
        + embed
    )


def recomputation_flops(structure: Structure, work: Workload) -> tuple[int, int]:
    """Of the language model's layers and of the tower's blocks: computed once more where activations are not kept."""
    layers = language_flops(structure.language, replace(work, scored=0))
    return layers, sum(_tower_parts(structure.tower, video)[1] for video in work.videos)


def language_flops(language: Language, work: Workload) -> int:
    """One forward pass of the language model and its head."""
    return sum(_language_parts(language, work))


def _language_parts(language: Language, work: Workload) -> tuple[int, int, int]:
    """Products with weights, attention, and the head."""
    projections = 2 * language.hidden * (language.query_width + language.kv_width)
    products = projections + 3 * language.hidden * language.intermediate
    attention = 4 * work.pairs * language.query_width
    head = 2 * work.scored * language.hidden * language.vocab
    return language.layers * 2 * work.tokens * products, language.layers * attention, head


def tower_flops(tower: Tower, video: VideoShape) -> int:
    """One forward pass of a vision tower over a video block."""
    return sum(_tower_parts(tower, video))


def _tower_parts(tower: Tower, video: VideoShape) -> tuple[int, int, int]:
    """Patch embedding, blocks and mergers. No patch attends beyond its scene."""
    grid_h, grid_w = video.height // tower.patch, video.width // tower.patch
    patches, scenes = grid_h * grid_w, len(video.scene_lengths)
    embed = 2 * sum(video.scene_lengths) * patches * tower.patch_values * tower.hidden
    mlp = (3 if tower.is_gated else 2) * tower.hidden * tower.intermediate
    windowed = tower.blocks - tower.full_blocks
    attended = tower.full_blocks * patches**2 + windowed * _window_pairs(tower, grid_h, grid_w)
    blocks = tower.blocks * 2 * patches * (4 * tower.hidden**2 + mlp) + 4 * attended * tower.hidden
    merged = patches // tower.merge**2
    mergers = (1 + tower.levels) * 2 * merged * tower.merged * (tower.merged + tower.out)
    return embed, scenes * blocks, scenes * mergers


def _window_pairs(tower: Tower, grid_h: int, grid_w: int) -> int:
    """Pairs of patches within one window, over all windows of a frame; those at its far sides may be smaller."""
    if not tower.window:
        return (grid_h * grid_w) ** 2
    side = tower.window // tower.unit  # in visual tokens
    return tower.merge**4 * _squares(grid_h // tower.merge, side) * _squares(grid_w // tower.merge, side)


def _squares(length: int, side: int) -> int:
    """Sum of squares of the pieces of a length."""
    whole, rest = divmod(length, side)
    return whole * side**2 + rest**2
