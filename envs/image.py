"""An image file as pixels, within bounds: what is no image, broken or too large is a typed error.

Legend: H W pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # decoders that strangers' files may reach
MOST_PIXELS = 100_000_000  # of a file, before it is made smaller: what it takes in memory is three bytes each
MOST_ELONGATED = 200  # longer side over shorter, from which nothing would be left of the shorter one
BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, KeyError, OverflowError, MemoryError)


class ImageError(ValueError):
    """An image cannot be read; one line that names the file, what is wrong and what to do."""


def read_image(path: str, fit: Callable[[int, int], tuple[int, int]], content: bytes | None = None) -> np.ndarray:
    """The picture of a file, upright as its EXIF data say, in RGB, made smaller without aliasing; of an animation the
    first picture. Transparent parts show white.

    Args:
        fit: (height, width) -> the size to resize to.
        content: of the file, where it is none on the disk; `path` is then its name in messages.
    Returns:
        uint8 (H, W, 3).
    Raises:
        ImageError: the file cannot be opened, is no image, or is broken or too large.
    """
    try:
        with warnings.catch_warnings():  # of odd metadata and of sizes that are judged here
            warnings.simplefilter("ignore")
            with Image.open(path if content is None else BytesIO(content), formats=FORMATS) as file:
                _require_size(path, *file.size)
                upright = ImageOps.exif_transpose(file)
                picture = _opaque(upright)
                height, width = fit(picture.height, picture.width)
                resized = picture.resize((width, height), Image.Resampling.BICUBIC)
                return np.asarray(resized, dtype=np.uint8)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: more pixels than are read ({MOST_PIXELS:,}); make it smaller") from error
    except BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{path}: cannot be read as an image ({reason}); fetch it again, or drop its row") from error


def _require_size(path: str, width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise ImageError(f"{path}: {width} x {height} pixels, at most {MOST_PIXELS:,} are read; make it smaller")
    if max(width, height) > MOST_ELONGATED * min(width, height):
        raise ImageError(f"{path}: {width} x {height} pixels: a line, not a picture; drop its row")


def _opaque(picture: Image.Image) -> Image.Image:
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layered = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
