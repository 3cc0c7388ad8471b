"""Video blocks in token sequences: the one place that writes them, and finds them again.

    AROUND_BLOCK (Qwen2.5-VL)  <|vision_start|> <0.0 seconds> pads <2.5 seconds> pads … <|vision_end|>
    AROUND_SCENE (Qwen3-VL)    <0.3 seconds> <|vision_start|> pads <|vision_end|> <2.8 seconds> <|vision_start|> …

Legend: T tokens · K scenes of one block · I videos · M marker pairs of one video.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rl.policy.families import Markers
from rl.policy.token_ids import TokenIds


def video_block(times_K: Sequence[Sequence[int]], tokens_per_scene: int, ids: TokenIds, markers: Markers) -> list[int]:
    """A block's tokens.

    Args:
        times_K: each scene's time as token ids; empty ones write no time.
        tokens_per_scene: placeholders of each scene.
    """
    pads = [ids.video_pad] * tokens_per_scene
    if markers is Markers.AROUND_BLOCK:
        return [ids.vision_start, *(token for time in times_K for token in (*time, *pads)), ids.vision_end]
    return [token for time in times_K for token in (*time, ids.vision_start, *pads, ids.vision_end)]


def counts_in(block: Sequence[int], ids: TokenIds) -> list[int]:
    """Placeholders of each of a block's marker pairs (M)."""
    block_T = np.asarray(block)
    pair_P = np.cumsum(block_T == ids.vision_start)[block_T == ids.video_pad]
    return np.bincount(pair_P)[1:].tolist()


def find_marked(
    token_ids: Sequence[int], counts_IM: Sequence[Sequence[int]], vision_start: int, video_pad: int
) -> list[tuple[int, int, np.ndarray]]:
    """Where each video stands: from its first <|vision_start|> to its last placeholder, and which tokens of these are
    placeholders. Scene times between them belong to the video, but carry no embedding of it.

    Args:
        counts_IM: as `counts_in`, of each video in order.
    Returns:
        (start, stop, is_placeholder of shape (stop - start,)) of each video.
    Raises:
        ValueError: the placeholders are not those of the videos; nothing is expanded or cut to make them fit.
    """
    ids_T = np.asarray(token_ids)
    is_pad_T = ids_T == video_pad
    starts, pads = np.flatnonzero(ids_T == vision_start), np.flatnonzero(is_pad_T)
    found = np.bincount(np.searchsorted(starts, pads, side="right"), minlength=len(starts) + 1).tolist()
    expected = [count for counts in counts_IM for count in counts]
    if found[0] or found[1:] != expected:
        raise ValueError(
            f"the prompt's video blocks hold {found[1:]} placeholders"
            f"{f' and {found[0]} stand outside any block' if found[0] else ''}, "
            f"but its {len(counts_IM)} videos have {expected} visual tokens: "
            "prompts must come with one placeholder per video, or with placeholders already expanded, in order"
        )
    last_of_pair = np.cumsum(expected) - 1  # numbers of placeholders
    spans, first = [], 0
    for counts in counts_IM:
        start, stop = int(starts[first]), int(pads[last_of_pair[first + len(counts) - 1]]) + 1
        spans.append((start, stop, is_pad_T[start:stop]))
        first += len(counts)
    return spans


def expand_blocks(token_ids: Sequence[int], blocks: Sequence[Sequence[int]], ids: TokenIds) -> list[int]:
    """A prompt whose blocks are all written out: `<|vision_start|><|video_pad|><|vision_end|>`, as chat templates put
    it for a video, becomes the video's block; blocks that stand there already, as in training, stay as they are.

    Args:
        blocks: of the videos in order, as `video_block` writes them.
    """
    ids_T = np.asarray(token_ids)
    pads = np.flatnonzero(ids_T == ids.video_pad)
    if not _are_bare(ids_T, pads, ids).any():
        return list(token_ids)
    expanded, copied, passed = [], 0, 0
    for block in blocks:
        if passed >= len(pads):  # beyond: a block that stands there is shorter than its video's
            break  # a video without a place: for `find_marked` to refuse
        pad, held = int(pads[passed]), sum(token == ids.video_pad for token in block)
        start = pad - list(block).index(ids.video_pad)
        written = start >= 0 and list(token_ids[start : start + len(block)]) == list(block)
        if _are_bare(ids_T, pads[passed : passed + 1], ids).all() and not written:
            expanded += [*token_ids[copied : pad - 1], *block]
            copied, passed = pad + 2, passed + 1
        else:
            passed += held
    return [*expanded, *token_ids[copied:]]


def _are_bare(ids_T: np.ndarray, pads: np.ndarray, ids: TokenIds) -> np.ndarray:
    """Which placeholders stand alone between two markers."""
    padded = np.pad(ids_T, 1, constant_values=-1)
    return (padded[pads] == ids.vision_start) & (padded[pads + 2] == ids.vision_end)


def find_blocks(token_ids: Sequence[int], blocks: Sequence[Sequence[int]], video_pad: int) -> list[tuple[int, int]]:
    """Start and stop of whole blocks in a sequence, in order: each told by its first placeholder.

    Args:
        blocks: as `video_block` writes them.
    """
    pads = np.flatnonzero(np.asarray(token_ids) == video_pad)
    spans, passed = [], 0
    for block in blocks:
        start = int(pads[passed]) - list(block).index(video_pad)
        spans.append((start, start + len(block)))
        passed += sum(token == video_pad for token in block)
    return spans
