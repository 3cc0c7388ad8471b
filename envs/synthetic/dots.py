"""The quickstart world's small details: a dot whose colour no coarse frame can show, and a mark that tells where it is.

During the event a mark is on screen: a light square ring, plain to see in coarse frames. In its middle lies a tile: a
dot, and around it a colour chosen so that the mean of both is one and the same grey, whatever the dot's colour. A frame
each of whose pixels covers a whole cell of the clip (`dot_px` a side) averages the colour away, at any time and at any
rate: only the clip's own pixels show it. Rounding and compression leave a level or two of a cell's mean, which a tint
of the tile, by chance and several times as strong, covers.

    ring ring ring ring      a mark: 4 x 4 cells or more, its position a multiple of its width
    ring  tile tile ring     the tile: 2 x 2 cells in its middle, the dot as large as one of them in theirs,
    ring  tile tile ring     so that each cell holds a quarter of it
    ring ring ring ring

Legend: T frames · H W pixels · C colours (RGB).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from envs.synthetic.clip import DETAIL_COLOURS, add_drifting_square, background

TILE_CELLS = 2
RING, GREY = 235, 110  # of the mark's ring, and the mean of every cell of a tile
TINT = 8  # levels by which that grey is off at most, in each of red, green and blue
DOT_SHARE = 1 / TILE_CELLS**2  # of a tile that is dot
EVENT_STEPS = (2, 3)  # lengths of the event window, in coarse intervals
WHOLE = 1000  # thousandths of a frame


@dataclass(frozen=True, slots=True)
class DotClip:
    """Everything a clip shows, in native frames and cells."""

    num_frames: int
    native_fps: int
    size: int  # pixels, square
    cell: int  # pixels, square
    mark: int  # cells, square
    event_first_frame: int
    event_end_frame: int  # exclusive
    column: int  # of the mark's left edge, in cells
    row: int  # of its upper edge
    colour: str
    tint: tuple[int, int, int]  # of the tile
    background_seed: int

    @property
    def event_span_s(self) -> tuple[float, float]:
        """The evidence window in seconds."""
        return self.event_first_frame / self.native_fps, self.event_end_frame / self.native_fps

    @property
    def box(self) -> list[float]:
        """The mark: left, top, right, bottom in thousandths of the frame."""
        cells = (self.column, self.row, self.column + self.mark, self.row + self.mark)
        return [round(WHOLE * self.cell * side / self.size, 1) for side in cells]


def refuse_dots(size: int, dot_px: int, mark_cells: int, places: int) -> None:
    """
    Raises:
        ValueError: frames of this size hold no whole number of cells, too few for a mark, or not so many places.
    """
    if mark_cells < 4 or mark_cells % 2:
        raise ValueError(f"dot_mark must be an even number of cells, 4 or more, got {mark_cells}")
    if dot_px < 4 or dot_px % 4 or size % dot_px or size // dot_px < 2 * mark_cells:
        raise ValueError(
            f"dot_px must be a multiple of 4 that divides size ({size}) into at least {2 * mark_cells} cells, "
            f"got {dot_px}"
        )
    most = size // dot_px // mark_cells
    if not 0 <= places <= most:
        raise ValueError(f"dot_places must be 0 (all) or up to {most}, marks side by side in a frame, got {places}")


def mark_places(size: int, dot_px: int, mark_cells: int, places: int) -> list[int]:
    """Where a mark may begin from the left, and from the top: cells, evenly spread multiples of its width."""
    slots = size // dot_px // mark_cells
    count = places or slots
    return [mark_cells * ((2 * place + 1) * slots // (2 * count)) for place in range(count)]


class World(Protocol):
    """What a clip takes of envs.synthetic.world.QuickstartWorld."""

    duration_s: float
    native_fps: float
    size: int
    coarse_fps: float
    dot_px: int
    dot_mark: int
    dot_places: int


def define_dot_clip(world: World, kind: str, colour: str, rng: np.random.Generator) -> DotClip:
    """A clip with one mark and one dot, where and when by chance."""
    intervals, step = round(world.duration_s * world.coarse_fps), round(world.native_fps / world.coarse_fps)
    steps = int(rng.choice(EVENT_STEPS))
    first = int(rng.integers(0, intervals - steps + 1))
    cells = mark_places(world.size, world.dot_px, world.dot_mark, world.dot_places)
    column, row = (cells[place] for place in rng.integers(0, len(cells), size=2))
    return DotClip(
        num_frames=round(world.duration_s * world.native_fps),
        native_fps=int(world.native_fps),
        size=world.size,
        cell=world.dot_px,
        mark=world.dot_mark,
        event_first_frame=first * step,
        event_end_frame=(first + steps) * step,
        column=column,
        row=row,
        colour=colour,
        tint=tuple(int(level) for level in rng.integers(-TINT, TINT + 1, size=3)),
        background_seed=int(rng.integers(2**31)),
    )


def draw_dots(clip: DotClip) -> np.ndarray:
    """The clip's pixels, THWC uint8 RGB: the quickstart's background, and the mark during the event."""
    rng = np.random.default_rng(clip.background_seed)
    frames_THWC = np.repeat(background(clip.size, rng)[None], clip.num_frames, axis=0)
    add_drifting_square(frames_THWC, rng)
    during = slice(clip.event_first_frame, clip.event_end_frame)
    left, top, cell = clip.column * clip.cell, clip.row * clip.cell, clip.cell
    frames_THWC[during, top : top + clip.mark * cell, left : left + clip.mark * cell] = RING
    tile = (clip.mark - TILE_CELLS) // 2 * cell  # from the mark's edge
    dot = tile + cell // 2
    colour_C = np.array(DETAIL_COLOURS[clip.colour], dtype=float)
    around_C = (GREY + np.array(clip.tint) - DOT_SHARE * colour_C) / (1 - DOT_SHARE)
    for offset, side, shown_C in ((tile, TILE_CELLS * cell, around_C), (dot, cell, colour_C)):
        y, x = top + offset, left + offset
        frames_THWC[during, y : y + side, x : x + side] = np.round(shown_C).astype(np.uint8)
    return frames_THWC


def dot_columns(clip: DotClip) -> dict[str, Any]:
    """What a row tells of it beside its question: the region to look at, and the dot."""
    middle_x, middle_y = ((side + 0.5 * clip.mark) * clip.cell for side in (clip.column, clip.row))
    half = clip.cell / 2
    sides = (middle_x - half, middle_y - half, middle_x + half, middle_y + half)
    return {
        "box": clip.box,
        "dot_box": [round(WHOLE * side / clip.size, 1) for side in sides],
        "colour": clip.colour,
    }


def shown_dot(row: dict[str, Any], time_s: float, box: tuple[float, float, float, float]) -> str | None:
    """The dot's colour, where the frame on screen shows the mark and most of the dot lies within the box; else None."""
    if not row["gt_span_start"] <= time_s < row["gt_span_end"]:
        return None
    dot = row["dot_box"]
    width, height = (max(0.0, min(box[i + 2], dot[i + 2]) - max(box[i], dot[i])) for i in (0, 1))
    area = (dot[2] - dot[0]) * (dot[3] - dot[1])
    return row["colour"] if width * height > 0.5 * area else None


def jittered_zoom(
    row: dict[str, Any], window_jitter_s: float, box_jitter: float, rng: np.random.Generator
) -> tuple[float, tuple[float, float, float, float]]:
    """A moment and a box that are roughly right: the moment to a tenth of a second, within the event and up to
    `window_jitter_s` beyond; each side of the box moved by up to `box_jitter`, to tens of thousandths."""
    time_s = rng.uniform(row["gt_span_start"] - window_jitter_s, row["gt_span_end"] + window_jitter_s)
    time_s = round(float(np.clip(time_s, 0, row["duration_s"] - 0.1)), 1)
    moved_4 = np.array(row["box"]) + rng.uniform(-box_jitter, box_jitter, size=4)
    left, top, right, bottom = (float(side) for side in np.clip(np.round(moved_4, -1), 0, WHOLE))
    if right - left < 20 or bottom - top < 20:
        left, top, right, bottom = row["box"]
    return time_s, (left, top, right, bottom)
