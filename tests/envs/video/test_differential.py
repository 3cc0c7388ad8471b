"""Odd but lawful videos, each kind of oddity in its turn, read as a second decoder reads them or refused by name.

The second decoder is FFmpeg's own command line (tests/envs/video/second_decoder.py); thousands of files:
`python -m tests.envs.video.differential 2000 SEED FOLDER`, which keeps the files on which the two disagree.
"""

from collections import Counter

import numpy as np
import pytest

from tests.envs.video import second_decoder
from tests.envs.video.differential import campaign
from tests.envs.video.odd.clocks import seams
from tests.envs.video.odd.files import KINDS, odd_files
from tests.envs.video.odd.seeds import make_seeds

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(
        second_decoder.program() is None,
        reason="no second decoder: install imageio-ffmpeg, or put FFmpeg 7 or newer on PATH",
    ),
]

FEW = (  # clips in which every kind finds what it changes
    *("h264.mp4", "h264-pieces.mp4", "hevc-open.mp4", "h264-refresh.mp4", "h264.mkv", "vp9.webm", "h264-sound.ts"),
    *("mpeg2.vob", "mpeg1.mpg", "mpeg4-packable.avi", "mjpeg.avi", "h264.flv", "numbers.gif", "numbers.apng"),
)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return make_seeds(tmp_path_factory.mktemp("seeds"), FEW)


def faults_in(outcomes):
    return [f"{verdict.kind}: {odd.name}: {verdict.detail}" for odd, verdict in outcomes if verdict.is_fault]


@pytest.mark.parametrize("seed", [0])
def test_40_odd_videos_are_read_as_a_second_decoder_reads_them(few, seed):
    outcomes = list(campaign(few, 40, seed))
    assert not faults_in(outcomes), "\n".join(faults_in(outcomes))
    assert Counter(verdict.kind for _, verdict in outcomes)["agree"] >= 30  # it does not agree by refusing


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_2000_odd_videos_are_read_as_a_second_decoder_reads_them(tmp_path):
    """But for a few that contradict themselves (a change upon a change), over which players differ as well."""
    outcomes = list(campaign(make_seeds(tmp_path), 2000, seed=1))
    assert len(faults_in(outcomes)) <= 0.005 * len(outcomes), "\n".join(faults_in(outcomes))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_of_oddity_finds_a_clip_to_change(few, kind):
    [odd] = odd_files(few, 1, seed=1, kinds=[kind])
    assert odd.kind.startswith(kind)


def test_the_same_seed_makes_the_same_files(few):
    first, again, other = (list(odd_files(few, 30, seed)) for seed in (1, 1, 2))
    assert first == again and first != other


def test_seams_are_where_nothing_that_comes_later_is_shown_earlier():
    assert seams([0, 3, 1, 2, 4, 6, 5]) == [1, 4, 5]
    assert seams(list(range(4))) == [1, 2, 3] and seams([1, 0]) == []


@pytest.mark.parametrize("size_HW", [(24, 32)])
def test_the_second_decoder_tells_number_times_stays_shapes_and_pixels(few, tmp_path, size_HW):
    path = tmp_path / "clip.gif"
    path.write_bytes(next(one.content for one in few if one.name == "numbers.gif"))
    shown = second_decoder.show(path, size_HW)
    assert shown.pixels_NHWC.shape == (16, *size_HW, 3) and set(shown.shapes_N) == {(96, 128)}
    assert np.allclose(np.diff(shown.times_s_N), 0.1) and np.allclose(shown.stays_s_N, 0.1)
    assert shown.declared_s == pytest.approx(1.6) and shown.complaints == ()
