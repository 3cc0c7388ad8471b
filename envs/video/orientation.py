"""How a decoded picture is turned and mirrored before it is shown: the display matrix of a container or bitstream.

Legend: H W pixels · C colours (RGB).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import av
import numpy as np
from av.sidedata.sidedata import Type

MATRIX_BYTES = 9 * 4  # a b u · c d v · x y w, fixed point


@dataclass(frozen=True, slots=True)
class Orientation:
    """One of the eight ways to lay a picture on a screen."""

    quarter_turns: int = 0  # counter-clockwise, before mirroring
    is_mirrored: bool = False  # left and right are exchanged

    @property
    def swaps_sides(self) -> bool:
        """Height becomes width."""
        return self.quarter_turns % 2 == 1

    def __call__(self, pixels_HWC: np.ndarray) -> np.ndarray:
        """The picture as it is shown."""
        if self.quarter_turns:
            pixels_HWC = np.rot90(pixels_HWC, self.quarter_turns)
        return pixels_HWC[:, ::-1] if self.is_mirrored else pixels_HWC

    def __str__(self) -> str:
        turned = f"turned by {90 * self.quarter_turns} degrees" if self.quarter_turns else ""
        return " and ".join(filter(None, (turned, "mirrored" if self.is_mirrored else ""))) or "upright"


UPRIGHT = Orientation()
ORIENTATIONS = tuple(Orientation(turns, mirrored) for mirrored in (False, True) for turns in range(4))
_COS_SIN = ((1, 0), (0, 1), (-1, 0), (0, -1))  # of the quarter turns


def orientation_of(picture: av.VideoFrame) -> Orientation:
    """What the picture's display matrix asks for; upright where there is none."""
    try:
        matrix = picture.side_data.get(Type.DISPLAYMATRIX)
    except ValueError:  # PyAV does not know what else lies beside it (Exif, for one): of the matrix it gives the angle
        return Orientation(round(picture.rotation / 90) % 4)
    if matrix is None or matrix.buffer_size < MATRIX_BYTES:
        return UPRIGHT
    return nearest_orientation(struct.unpack("=9i", bytes(matrix)[:MATRIX_BYTES]))


def nearest_orientation(matrix: tuple[int, ...]) -> Orientation:
    """The orientation that a display matrix means, or comes nearest to: tilted video is shown as its camera was held.

    Args:
        matrix: a b u c d v x y w; a point (p, q), rows downwards, is shown at (a p + c q + x, b p + d q + y).
    """
    a, b, _, c, d = matrix[:5]

    def agreement(orientation: Orientation) -> int:
        cos, sin = _COS_SIN[orientation.quarter_turns]
        across = a * cos + c * sin
        return (-across if orientation.is_mirrored else across) - b * sin + d * cos

    return max(ORIENTATIONS, key=agreement)  # the first of several: a matrix of zeros means nothing
