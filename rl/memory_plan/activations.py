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
    """Bytes; the worst moment holds `kept`, `logits` or `layer`, whichever is larger, and the rest."""

    kept: float  # from the forward pass until the backward pass reaches it
    layer: float  # of the layer at work: recomputed, and its gradients
    logits: float  # of the chunk of the head at work
    tower: float  # kept of the vision tower

    @property
    def peak(self) -> float:
        """At the worst moment."""
        return self.kept + self.tower + max(self.layer, self.logits)


def activations(
    structure: Structure,
    batch: MicroBatch,
    itemsize: int,
    *,
    checkpointing: bool,
    freeze_vision: bool,
    sequence_parallel: int = 1,
) -> Activations:
    """Of one micro-batch, with gradient.

    Args:
        itemsize: b.
        checkpointing: layers and blocks are recomputed in the backward pass.
        sequence_parallel: ranks with a part each of the tokens; embeddings and visual tokens each has of all.
    """
    language, tower = structure.language, structure.tower
    tokens = batch.tokens / sequence_parallel
    saved = layer_saved(language, itemsize) * tokens
    working = layer_working(language, itemsize) * tokens
    inputs = language.layers * language.hidden * itemsize * tokens
    patches = batch.visual_tokens * tower.merge**2
    kept = inputs if checkpointing else language.layers * saved
    tower_kept = _tower_kept(tower, patches, batch, itemsize, checkpointing=checkpointing, frozen=freeze_vision)
    embedded = 3 * language.hidden * itemsize * batch.tokens  # with videos put in, and the last norm's
    return Activations(
        kept + embedded,
        (saved if checkpointing else 0) + working,
        head_bytes(language, batch.scored),
        tower_kept,
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
    tower: Tower, patches: int, batch: MicroBatch, itemsize: int, *, checkpointing: bool, frozen: bool
) -> float:
    mergers = (1 + tower.levels) * patches * tower.hidden * (FLOAT + 4 * itemsize)
    pixels = batch.frames_values * (FLOAT + itemsize)  # normalised
    if frozen:
        return mergers + max(pixels, patches * block_working(tower, itemsize))
    blocks = tower.blocks * patches * (tower.hidden * itemsize if checkpointing else block_saved(tower, itemsize))
    return mergers + pixels + blocks


def block_saved(tower: Tower, itemsize: int) -> float:
    """Bytes that a block of the tower saves for its backward pass, per patch."""
    hidden, attention = tower.hidden, 6 * itemsize * tower.hidden + FLOAT * 2 * tower.hidden
    if tower.is_gated:
        return attention + 2 * norm_saved(itemsize) * hidden + 4 * itemsize * tower.intermediate
    return attention + 4 * itemsize * hidden + 2 * itemsize * tower.intermediate


def block_working(tower: Tower, itemsize: int) -> float:
    """Bytes that a block takes beside its input where nothing is saved, per patch."""
    attention = itemsize * 6 * tower.hidden + FLOAT * 4 * tower.hidden
    return max(attention, itemsize * (3 * tower.intermediate + 2 * tower.hidden))
