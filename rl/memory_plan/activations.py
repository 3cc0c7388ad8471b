"""What a micro-batch leaves in memory until its backward pass, and what that pass takes at its worst moment.

Counted from what autograd saves in our models, tensor by tensor, and held against torch's own counters by the tests:
change a layer, and they say where this page is wrong. Every number is of one micro-batch of one rank.

Legend: T tokens · N visual tokens · P patches · S scored tokens · E hidden size · I intermediate size · V vocabulary ·
Q K widths of queries and keys · b bytes of a value (2: bfloat16, 4: float32).
"""

from __future__ import annotations

from dataclasses import dataclass

from rl.policy.structure import Language, Structure, Tower

HEAD_CHUNK = 2048  # tokens whose logits exist at a time, as rl.policy.scoring_head has it
LOGIT_COPIES = 5  # of a chunk in float32 at the worst moment: scaled, masked, softmax and gradients
FLOAT = 4


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """How large a micro-batch can become."""

    tokens: int  # T, of all its trajectories
    visual_tokens: int  # N, of all distinct videos
    frames_values: int  # pixel values of all their frames
    scored: int  # S


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes. The backward pass begins with all that is kept, beside the head or a layer at work; when it comes to the
    tower, what was kept of the language model is gone."""

    kept: float  # of the language model, from the forward pass until the backward pass reaches it
    layer: float  # of its layer at work: recomputed, and its gradients
    logits: float  # of the chunk of the head at work
    tower: float  # kept of the vision tower until then
    tower_backward: float  # when it is its turn: kept of it, and its block at work, recomputed, with its gradients


def activations(
    structure: Structure,
    batch: MicroBatch,
    itemsize: int,
    *,
    recomputes_language: bool,
    recomputes_vision: bool,
    freeze_vision: bool,
    sequence_parallel: int = 1,
) -> Activations:
    """Of one micro-batch, with gradient.

    Args:
        itemsize: b.
        recomputes_language: its layers are computed again in the backward pass.
        recomputes_vision: the tower's blocks are.
        sequence_parallel: ranks with a part each of the tokens; embeddings and visual tokens each has of all.
    """
    language, tower = structure.language, structure.tower
    tokens = batch.tokens / sequence_parallel
    saved = layer_saved(language, itemsize) * tokens
    working = layer_working(language, itemsize) * tokens
    inputs = language.layers * language.hidden * itemsize * tokens
    patches = batch.visual_tokens * tower.merge**2
    kept = inputs if recomputes_language else language.layers * saved
    tower_kept = _tower_kept(tower, patches, batch, itemsize, recomputes=recomputes_vision, frozen=freeze_vision)
    block = 0 if freeze_vision else block_backward(tower, itemsize)
    if recomputes_vision and not freeze_vision:
        block += block_saved(tower, itemsize)
    embedded = 3 * language.hidden * itemsize * batch.tokens  # with videos put in, and the last norm's
    return Activations(
        kept + embedded,
        (saved if recomputes_language else 0) + working,
        head_bytes(language, batch.scored),
        tower_kept,
        tower_kept + block * patches,
    )


def layer_saved(language: Language, itemsize: int) -> float:
    """Bytes that a language layer saves for its backward pass, per token."""
    query, kv, hidden = language.query_width, language.kv_width, language.hidden
    attention = itemsize * 2 * (query + kv) + FLOAT * language.heads  # query, key, value, output
    norms = 2 * norm_saved(itemsize) * hidden
    if language.has_qk_norm:
        norms += (norm_saved(itemsize) - itemsize) * (query + kv)  # what they give goes on, turned
    return norms + attention + 4 * itemsize * language.intermediate


def norm_saved(itemsize: int) -> int:
    """Bytes that an RMSNorm saves per value: its input in float32, the normalised value, and its output."""
    return FLOAT + 2 * itemsize


def layer_working(language: Language, itemsize: int) -> float:
    """Bytes that the backward pass of a language layer takes beside what is saved, per token."""
    return itemsize * (2 * language.intermediate + 2 * language.hidden)


def head_bytes(language: Language, scored: int) -> float:
    """Of the output layer, at its worst moment."""
    chunk = min(scored, HEAD_CHUNK)
    return chunk * language.vocab * LOGIT_COPIES * FLOAT


def _tower_kept(
    tower: Tower, patches: int, batch: MicroBatch, itemsize: int, *, recomputes: bool, frozen: bool
) -> float:
    features = (1 + tower.levels) * patches * tower.hidden  # values that mergers read
    mergers = features * (FLOAT + 4 * itemsize if tower.is_gated else 3 * itemsize)
    pixels = batch.frames_values * itemsize  # normalised, in float32 at first
    if frozen:
        embedding = pixels + batch.frames_values * FLOAT
        return mergers + features * itemsize + max(embedding, patches * block_working(tower, itemsize))
    blocks = tower.blocks * patches * (tower.hidden * itemsize if recomputes else block_saved(tower, itemsize))
    return mergers + pixels + blocks


def block_saved(tower: Tower, itemsize: int) -> float:
    """Bytes that a block of the tower saves for its backward pass, per patch."""
    hidden, attention = tower.hidden, 6 * itemsize * tower.hidden
    if tower.is_gated:
        return attention + 2 * norm_saved(itemsize) * hidden + 4 * itemsize * tower.intermediate
    return attention + 4 * itemsize * hidden + 2 * itemsize * tower.intermediate


def block_backward(tower: Tower, itemsize: int) -> float:
    """Bytes that the backward pass of a block takes beside what is saved, per patch."""
    return itemsize * (2 if tower.is_gated else 1) * (tower.intermediate + tower.hidden)


def block_working(tower: Tower, itemsize: int) -> float:
    """Bytes that a block takes beside its input where nothing is saved, per patch."""
    attention = itemsize * 6 * tower.hidden + FLOAT * 4 * tower.hidden
    return max(attention, itemsize * (3 * tower.intermediate + 2 * tower.hidden))
