"""The eight orientations: turned, mirrored, both."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from envs.video.orientation import ORIENTATIONS, UPRIGHT, Orientation, nearest_orientation
from envs.video.reader import index_video, read_frames
from tests.envs.video.clips import HEIGHT, WIDTH, number_in, picture, render

CASES = Path(__file__).parent / "cases"
ONE = 1 << 16
EXIF = {  # orientation of a camera's picture: rows and columns of F as it is to be seen, and the matrix that says so
    1: ((1, 0, 0, 1), lambda p: p),
    2: ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
    3: ((-1, 0, 0, -1), lambda p: p[::-1, ::-1]),
    4: ((1, 0, 0, -1), lambda p: p[::-1]),
    5: ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
    6: ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    7: ((0, -1, -1, 0), lambda p: np.rot90(p, 2).swapaxes(0, 1)),
    8: ((0, -1, 1, 0), lambda p: np.rot90(p, 1)),
}
LETTER = np.arange(6).reshape(3, 2, 1)


def matrix_of(a, b, c, d):
    return (a, b, 0, c, d, 0, 0, 0, 1 << 30)


@pytest.mark.parametrize("number", EXIF)
def test_every_orientation_is_shown_as_its_matrix_says(number):
    signs, upright = EXIF[number]
    orientation = nearest_orientation(matrix_of(*(ONE * sign for sign in signs)))
    assert (orientation(LETTER) == upright(LETTER)).all()
    assert orientation.swaps_sides == (number >= 5)


def test_the_eight_are_different():
    assert len({orientation(LETTER).tobytes() + bytes(orientation(LETTER).shape) for orientation in ORIENTATIONS}) == 8


@pytest.mark.parametrize(
    ("matrix", "orientation"),
    [
        ((ONE, 0, 0, ONE), UPRIGHT),
        ((0, 0, 0, 0), UPRIGHT),  # means nothing
        ((2 * ONE, 0, 0, ONE), UPRIGHT),  # stretched
        ((-3 * ONE, 0, 0, ONE), Orientation(0, is_mirrored=True)),
        ((64000, -12000, 12000, 64000), UPRIGHT),  # tilted by 11 degrees
        ((12000, -64000, 64000, 12000), Orientation(1)),  # by 79
        ((-12000, 64000, 64000, 12000), Orientation(3, is_mirrored=True)),
    ],
)
def test_a_matrix_between_two_orientations_means_the_nearer(matrix, orientation):
    assert nearest_orientation(matrix_of(*matrix)) == orientation


@pytest.mark.parametrize(
    ("suffix", "degrees", "hflip", "vflip"),
    [
        *[("mp4", *how) for how in ((0, True, False), (0, False, True), (90, False, False), (90, True, False))],
        ("mov", -90, True, False),
        ("mkv", 90, False, False),  # Matroska can turn, not mirror
    ],
)
def test_a_clip_is_shown_as_its_container_says(tmp_path, suffix, degrees, hflip, vflip):
    path = render(tmp_path / f"turned.{suffix}", frames=8, rotation=degrees, hflip=hflip, vflip=vflip)
    index = index_video(path)
    (pixels_HWC,), *_ = read_frames(index, [0.2], (index.height, index.width))
    with av.open(str(path)) as container:
        plain = [picture.to_ndarray(format="rgb24") for picture in container.decode(video=0)][5]

    assert (index.height, index.width) == ((WIDTH, HEIGHT) if degrees else (HEIGHT, WIDTH))
    assert np.abs(pixels_HWC.astype(int) - index.orientation(plain)).mean() < 2
    assert number_in(plain) == 5 and index.orientation != UPRIGHT


@pytest.mark.parametrize(("number", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_a_cameras_exif_turns_motion_jpeg(tmp_path, number, turns):
    exif, jpeg = Image.Exif(), io.BytesIO()
    exif[0x112] = number
    Image.fromarray(picture(5)).save(jpeg, "JPEG", exif=exif.tobytes())
    with av.open(str(tmp_path / "camera.mov"), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        packet = av.Packet(jpeg.getvalue())
        packet.stream, packet.pts, packet.dts, packet.time_base = stream, 0, 0, Fraction(1, 25)
        container.mux(packet)
    index = index_video(tmp_path / "camera.mov")
    assert index.orientation == Orientation(turns)
    assert (index.height, index.width) == ((WIDTH, HEIGHT) if turns % 2 else (HEIGHT, WIDTH))


@pytest.mark.parametrize(
    ("name", "orientation"),
    [("mp4_hflip.mp4", Orientation(0, is_mirrored=True)), ("mp4_vflip.mp4", Orientation(2, is_mirrored=True))],
)
def test_mirrored_phone_video(name, orientation):
    assert index_video(CASES / name).orientation == orientation


def test_an_orientation_says_what_it_does():
    assert [str(one) for one in (UPRIGHT, Orientation(1), Orientation(0, True), Orientation(3, True))] == [
        "upright",
        "turned by 90 degrees",
        "mirrored",
        "turned by 270 degrees and mirrored",
    ]
