"""Images as others send them: upright, opaque, in RGB, and never a crash."""

import numpy as np
import pytest
from PIL import Image

from envs.image import MOST_PIXELS, ImageError, read_image

RED, BLUE = (255, 0, 0), (0, 0, 255)
SIZE = (28, 56)  # height, width


def as_they_are(height, width):
    return height, width


def halves(mode="RGB"):
    """Red on the left, blue on the right, twice as wide as high."""
    pixels = np.zeros((*SIZE, 3), dtype=np.uint8)
    pixels[:, :28], pixels[:, 28:] = RED, BLUE
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.png", "RGB"), ("a.png", "P"), ("a.webp", "RGB"), ("a.bmp", "RGB"), ("a.gif", "P"), ("a.tiff", "RGB")],
)
def test_whatever_wrote_it_the_picture_is_the_same(tmp_path, name, mode):
    halves(mode).save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    pixels = read_image(str(tmp_path / name), as_they_are)
    assert pixels.dtype == np.uint8 and pixels.shape == (*SIZE, 3)
    assert np.abs(pixels[:, :20].astype(int) - RED).max() <= 10 >= np.abs(pixels[:, 36:].astype(int) - BLUE).max()


def test_a_picture_lies_as_its_camera_held_it(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter, clockwise
    halves().save(tmp_path / "a.png", exif=exif)
    pixels = read_image(str(tmp_path / "a.png"), as_they_are)
    assert pixels.shape == (56, 28, 3)
    assert tuple(pixels[5, 14]) == RED and tuple(pixels[50, 14]) == BLUE


def test_what_is_transparent_is_white(tmp_path):
    Image.new("RGBA", (28, 28), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert (read_image(str(tmp_path / "a.png"), as_they_are) == 255).all()


def test_it_is_made_smaller_without_aliasing(tmp_path):
    stripes = np.zeros((280, 280, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "a.png")
    pixels = read_image(str(tmp_path / "a.png"), lambda height, width: (28, 28))
    assert np.abs(pixels[:, 2:-2].astype(int) - 127).max() <= 8


def truncated(path):
    halves().resize((280, 280)).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:900])


def elongated(path):
    Image.new("RGB", (4000, 3)).save(path, format="PNG")


def huge(path):
    Image.new("1", (20_000, 6_000)).save(path, format="PNG")


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: path.write_bytes(b""), "cannot be read as an image"),
        (lambda path: path.write_text("<html>404</html>"), "cannot be read as an image"),
        (lambda path: None, "cannot be read as an image .*No such file"),
        (truncated, "cannot be read as an image .*truncated"),
        (elongated, "a line, not a picture"),
        (huge, f"at most {MOST_PIXELS:,} are read"),
    ],
)
def test_what_is_no_picture_is_named_with_its_file_and_what_to_do(tmp_path, write, reason):
    write(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match=reason) as refused:
        read_image(str(tmp_path / "a.jpg"), as_they_are)
    assert str(tmp_path / "a.jpg") in str(refused.value) and "\n" not in str(refused.value)
