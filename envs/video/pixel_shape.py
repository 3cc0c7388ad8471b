"""The shape that a picture has on a screen: pixels need not be square."""

from __future__ import annotations

from fractions import Fraction

from envs.video.file import CorruptVideoError

MAX_ASPECT = 10  # of a pixel; film squeezed for old television has 3 at most, what says more is a damaged header


def shape_on_screen(path: str, height: int, width: int, pixel_aspect: Fraction | None) -> tuple[int, int]:
    """Height and width of a picture whose pixels are made square as players do: the shorter side grows, none shrinks.

    Args:
        pixel_aspect: width of a pixel by its height; None or not positive: square.
    Raises:
        CorruptVideoError: pixels so long that the header must be damaged.
    """
    if pixel_aspect is None or pixel_aspect <= 0:
        return height, width
    if not 1 / MAX_ASPECT <= pixel_aspect <= MAX_ASPECT:
        problem = f"says that its pixels are {float(pixel_aspect):.4g} times as wide as high"
        raise CorruptVideoError(path, problem, "re-encode it with square pixels (ffmpeg -vf setsar=1), or drop the row")
    if pixel_aspect >= 1:
        return height, round(width * pixel_aspect)
    return round(height / pixel_aspect), width
