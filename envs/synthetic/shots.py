"""One clip of the shot world: still stretches, cuts between them, and one short fast motion.

A clip is SHOTS shots of different colours, each a still picture with a texture. A black BAR stays at an edge: what
lasts. In the last shot a white BALL crosses the picture within two to four frames: what is brief. Which places it has
been in tells the axis it moves along; only their order tells the direction.

Legend: T frames · H W pixels · C colours (RGB).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

COLOURS = {"red": (150, 40, 40), "green": (40, 125, 50), "blue": (45, 60, 150), "yellow": (145, 130, 35)}
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # of rows and columns
SHOTS = 3
MOTION_FRAMES = (2, 3, 4)
SHORTEST_SHOT = MOTION_FRAMES[-1] + 2  # a motion, and a still frame on either side of it
MOST_STILL_AFTER = 3  # frames from the end of the motion to the end of the clip
BALL_SHARE, BAR_SHARE = 1 / 3, 1 / 5  # of the picture's side
TEXTURE = 18.0  # largest deviation from a shot's colour, in 255ths
WHITE, BLACK = 245, 10


@dataclass(frozen=True, slots=True)
class Motion:
    """A ball that is on screen for `num_frames` frames, in which it goes from one edge to the opposite one."""

    first_frame: int
    num_frames: int
    direction: str
    track: float  # where across its way it goes, 0 to 1


@dataclass(frozen=True, slots=True)
class ShotClip:
    """Everything a clip shows; its pixels follow from it."""

    size: int  # pixels, square
    shot_frames: tuple[int, ...]  # length of each shot
    colours: tuple[str, ...]  # of each shot
    bar_edge: str  # of DIRECTIONS
    motion: Motion
    texture_seed: int

    @property
    def num_frames(self) -> int:
        """T."""
        return sum(self.shot_frames)


def define_clip(
    num_frames: int, size: int, *, last: str, edge: str, direction: str, rng: np.random.Generator
) -> ShotClip:
    """A clip of which the answers are given, the rest drawn.

    Args:
        last: colour of the last shot.
        edge: where the bar is.
        direction: of the motion.
    """
    others = [str(colour) for colour in rng.permutation([name for name in COLOURS if name != last])]
    spare = num_frames - SHOTS * SHORTEST_SHOT
    bounds = [0, *sorted(int(bound) for bound in rng.integers(0, spare + 1, SHOTS - 1)), spare]
    lengths = [SHORTEST_SHOT + after - before for before, after in pairwise(bounds)]
    frames = int(rng.choice(MOTION_FRAMES))
    still_after = int(rng.integers(1, min(MOST_STILL_AFTER, SHORTEST_SHOT - 1 - frames) + 1))
    first = num_frames - still_after - frames
    motion = Motion(first, frames, direction, float(rng.uniform()))
    colours = (others[0], others[1], last)
    return ShotClip(size, tuple(lengths), colours, edge, motion, int(rng.integers(2**31)))


def draw(clip: ShotClip) -> np.ndarray:
    """The clip's pixels, THWC uint8 RGB."""
    rng = np.random.default_rng(clip.texture_seed)
    pictures = [_picture(COLOURS[colour], clip.size, rng) for colour in clip.colours]
    for picture_HWC in pictures:
        _add_bar(picture_HWC, DIRECTIONS[clip.bar_edge])
    frames_THWC = np.repeat(np.stack(pictures), clip.shot_frames, axis=0)
    for frame, (top, left), side in ball_places(clip):
        frames_THWC[frame, top : top + side, left : left + side] = WHITE
    return frames_THWC


def ball_places(clip: ShotClip) -> list[tuple[int, tuple[int, int], int]]:
    """(frame, upper left corner, side) of the ball while it is on screen, in pixels."""
    motion, side = clip.motion, 2 * round(clip.size * BALL_SHARE / 2)  # even: halves of its way are whole pixels
    room = clip.size - side
    places = []
    for n in range(motion.num_frames):
        gone = round(room * n / (motion.num_frames - 1))
        along = [gone if part > 0 else room - gone for part in DIRECTIONS[motion.direction]]
        top, left = (
            at if part else round(room * motion.track)
            for at, part in zip(along, DIRECTIONS[motion.direction], strict=True)
        )
        places.append((motion.first_frame + n, (top, left), side))
    return places


def _picture(colour: tuple[int, int, int], size: int, rng: np.random.Generator) -> np.ndarray:
    """A colour with a texture of two gratings of random direction: camera shake shows on it."""
    rows_HW, columns_HW = np.mgrid[:size, :size]
    texture_HW = np.zeros((size, size))
    for period in (size / 5, size / 9):
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        texture_HW += np.sin(2 * np.pi * (rows_HW * np.sin(angle) + columns_HW * np.cos(angle)) / period + phase) / 2
    return np.clip(np.asarray(colour) + TEXTURE * texture_HW[..., None], 0, 255).astype(np.uint8)


def _add_bar(picture_HWC: np.ndarray, edge: tuple[int, int]) -> None:
    """Along the whole of an edge."""
    thick = round(len(picture_HWC) * BAR_SHARE)
    ends = {-1: slice(0, thick), 0: slice(None), 1: slice(-thick, None)}
    picture_HWC[ends[edge[0]], ends[edge[1]]] = BLACK
