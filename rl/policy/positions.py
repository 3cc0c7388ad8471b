"""MRoPE positions of a token sequence with video blocks: the one position function, used by engine and learner.

Text advances all three axes by one per token. A scene sits at one temporal index; its visual tokens spread over height
and width as an image's do. What follows a scene or a block resumes at the largest index + 1. See
docs/decisions/0001-positions.md for where a scene's indices start.

Legend: T tokens · K scenes of one block · S pieces (a run of text, or one scene).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rl.policy.families import Markers
from rl.policy.token_ids import TokenIds

MILLISECONDS = 1000


@dataclass(frozen=True, slots=True)
class SceneClock:
    """When the scenes of one video block are, and how many tokens each has."""

    times_s_K: tuple[float, ...]  # of each scene's start or middle, as the family has it
    grid_h: int  # patches
    grid_w: int
    merge: int  # patches per token along each side

    @property
    def rows(self) -> int:
        """Token rows of a scene."""
        return self.grid_h // self.merge

    @property
    def columns(self) -> int:
        """Token columns of a scene."""
        return self.grid_w // self.merge

    @property
    def tokens_per_scene(self) -> int:
        """Visual tokens of a scene."""
        return self.rows * self.columns


def mrope_positions(
    token_ids: Sequence[int] | np.ndarray,
    clocks: Sequence[SceneClock],
    *,
    ids: TokenIds,
    tokens_per_second: float,
    markers: Markers = Markers.AROUND_BLOCK,
) -> np.ndarray:
    """Temporal, height and width index of every token (FlexiVideo, scene-interval MRoPE).

    The temporal index of scene k is at least `base + round(tokens_per_second * (time_k - time_0))`, base being the
    index after the block's first <|vision_start|>, and above that of scene k-1 and of the text between them. Times
    count in whole milliseconds, so that float32 and float64 clocks give equal positions. At a rate of 0 a scene stands
    where an image would: time is in the text alone (stock Qwen3-VL).

    Args:
        token_ids: T ids, placeholders expanded.
        clocks: one per video block, in order of appearance.
        ids: the tokenizer's ids.
        tokens_per_second: the vision config's, or the family's.
        markers: the family's.
    Returns:
        int64 array (3, T).
    Raises:
        ValueError: the placeholders do not match the clocks.
    """
    token_ids_T = np.asarray(token_ids, dtype=np.int64)
    pieces = list(_pieces(token_ids_T, clocks, ids, tokens_per_second, markers))
    temporal_S, spatial_S, lengths_S, columns_S = np.array(pieces, dtype=np.int64).T
    offsets_T = np.arange(len(token_ids_T)) - np.repeat(np.cumsum(lengths_S) - lengths_S, lengths_S)
    columns_T = np.repeat(columns_S, lengths_S)
    scene_T = columns_T > 0
    down_T, right_T = np.divmod(offsets_T, np.maximum(columns_T, 1))
    return np.stack(
        [
            np.repeat(temporal_S, lengths_S) + np.where(scene_T, 0, offsets_T),
            np.repeat(spatial_S, lengths_S) + np.where(scene_T, down_T, offsets_T),
            np.repeat(spatial_S, lengths_S) + np.where(scene_T, right_T, offsets_T),
        ]
    )


class _Piece(NamedTuple):
    """A run of text, or one scene: where its indices start."""

    temporal: int
    spatial: int
    length: int
    columns: int  # 0: text


def _pieces(
    token_ids_T: np.ndarray, clocks: Sequence[SceneClock], ids: TokenIds, tokens_per_second: float, markers: Markers
) -> Iterator[_Piece]:
    """The pieces in order; text and scenes alternate, or scenes follow each other within a bare block."""
    scenes = _scenes(clocks, tokens_per_second)
    free, cursor = 0, 0  # next free index, next token
    base, corner, temporal = 0, None, -1  # of the block: index after its start, spatial corner; of the scene before
    for start, stop in _runs(token_ids_T == ids.video_pad):
        yield _Piece(free, free, start - cursor, 0)
        free, cursor = free + start - cursor, start
        while cursor < stop:
            clock, k, offset = next(scenes, (None, 0, 0))
            if clock is None or cursor + clock.tokens_per_scene > stop:
                raise ValueError(_mismatch(token_ids_T, clocks, ids))
            if markers is Markers.AROUND_SCENE:
                _require_own_markers(token_ids_T, cursor, cursor + clock.tokens_per_scene, ids)
                base, temporal = (free, free - 1) if k == 0 else (base, temporal)
            elif k == 0:
                base, corner = _block_start(token_ids_T, cursor, free, ids)
                temporal = base - 1
            temporal = max(temporal + 1, base + offset, free if corner is None else 0)
            spatial = temporal if corner is None else corner
            yield _Piece(temporal, spatial, clock.tokens_per_scene, clock.columns)
            free = max(free, temporal + 1, spatial + max(clock.rows, clock.columns))
            cursor += clock.tokens_per_scene
    if next(scenes, None) is not None:
        raise ValueError(_mismatch(token_ids_T, clocks, ids))
    yield _Piece(free, free, len(token_ids_T) - cursor, 0)


def _scenes(clocks: Sequence[SceneClock], tokens_per_second: float) -> Iterator[tuple[SceneClock, int, int]]:
    """Every scene in order: its block's clock, its number, and its temporal offset from the block's first scene."""
    for clock in clocks:
        ms_K = np.rint(np.asarray(clock.times_s_K, dtype=np.float64) * MILLISECONDS).astype(np.int64)
        offsets_K = np.floor((ms_K - ms_K[:1]) * tokens_per_second / MILLISECONDS + 0.5).astype(np.int64)
        for k, offset in enumerate(offsets_K.tolist()):
            yield clock, k, offset


def _block_start(token_ids_T: np.ndarray, first_pad: int, free: int, ids: TokenIds) -> tuple[int, int | None]:
    """Index after <|vision_start|>, and the block's spatial corner: None where text stands between the scenes."""
    for back in range(1, first_pad + 1):
        token = token_ids_T[first_pad - back]
        if token == ids.vision_start:
            return free - back + 1, (free if back == 1 else None)
        if token == ids.video_pad or token == ids.vision_end:
            break
    raise ValueError(f"the video placeholder at token {first_pad} does not follow <|vision_start|>")


def _require_own_markers(token_ids_T: np.ndarray, start: int, stop: int, ids: TokenIds) -> None:
    before, after = token_ids_T[start - 1 : start], token_ids_T[stop : stop + 1]
    if before.tolist() != [ids.vision_start] or after.tolist() != [ids.vision_end]:
        raise ValueError(f"the scene at token {start} does not stand between <|vision_start|> and <|vision_end|>")


def _runs(mask_T: np.ndarray) -> list[tuple[int, int]]:
    """Start and stop of each maximal run of True."""
    edges = np.flatnonzero(np.diff(mask_T.astype(np.int8), prepend=0, append=0))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _mismatch(token_ids_T: np.ndarray, clocks: Sequence[SceneClock], ids: TokenIds) -> str:
    expected = sum(len(clock.times_s_K) * clock.tokens_per_scene for clock in clocks)
    found = int((token_ids_T == ids.video_pad).sum())
    return (
        f"{found} video placeholders in the sequence, but its {len(clocks)} video blocks hold {expected}, or not there"
    )
