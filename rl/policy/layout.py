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


def marked_counts(num_scenes: int, tokens_per_scene: int, markers: Markers) -> list[int]:
    """Placeholders of each of a video's marker pairs (M)."""
    if markers is Markers.AROUND_BLOCK:
        return [num_scenes * tokens_per_scene]
    return [tokens_per_scene] * num_scenes


def find_marked(
    token_ids: Sequence[int], counts_IM: Sequence[Sequence[int]], vision_start: int, video_pad: int
) -> list[tuple[int, int, np.ndarray]]:
    """Where each video stands: from its first <|vision_start|> to its last placeholder, and which tokens of these are
    placeholders. Scene times between them belong to the video, but carry no embedding of it.

    Args:
        counts_IM: as `marked_counts`, of each video in order.
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
            "prompts must come with placeholders already expanded, one block per video, in order"
        )
    last_of_pair = np.cumsum(expected) - 1  # numbers of placeholders
    spans, first = [], 0
    for counts in counts_IM:
        start, stop = int(starts[first]), int(pads[last_of_pair[first + len(counts) - 1]]) + 1
        spans.append((start, stop, is_pad_T[start:stop]))
        first += len(counts)
    return spans


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
