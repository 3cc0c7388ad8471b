"""Wherever decoding begins, the picture is that of the pass over the whole clip: every container and codec, any
request, with and without a frame cache."""

import functools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from envs.video.frame_cache import FrameCache, read_frames_through
from envs.video.reader import CorruptVideoError, index_video, read_frames
from tests.envs.video.clips import HEIGHT, WIDTH, damage, render

CASES = Path(__file__).parent / "cases"
SIZE = (HEIGHT, WIDTH)
X265 = "log-level=none:keyint=20:min-keyint=20:scenecut=0"
FAST = {  # a few; the others are thorough
    "h264.mp4": {"options": {"bf": "3"}},
    "h264_open.mp4": {"options": {"x264-params": "open-gop=1:keyint=20:min-keyint=20:scenecut=0:bframes=3"}},
    "h264_refresh.mp4": {"options": {"x264-params": "intra-refresh=1:keyint=20:bframes=0:scenecut=0"}},
    "h264.avi": {"options": {"bf": "3"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"bf": "2"}},
    "vp8.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
}
THOROUGH = {
    "h264.mkv": {"options": {"bf": "3"}},
    "h264.mov": {"options": {"bf": "3"}},
    "h264.ts": {"options": {"bf": "3"}},
    "h264.flv": {"options": {"bf": "3"}},
    "h264.mpg": {"options": {"bf": "2"}},
    "h264_refresh.ts": {"options": {"x264-params": "intra-refresh=1:keyint=20:bframes=0:scenecut=0"}},
    "h264_open.ts": {"options": {"x264-params": "open-gop=1:keyint=20:min-keyint=20:scenecut=0:bframes=3"}},
    "h264_interlaced.ts": {"options": {"x264-params": "interlaced=1:bframes=2:keyint=20"}},
    "h264_deep.mp4": {"options": {"x264-params": "bframes=8:b-pyramid=normal:ref=6:keyint=20:scenecut=0"}},
    "h264_one_group.mp4": {"gop": 1000, "options": {"bf": "3", "sc_threshold": "0"}},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": X265}},
    "hevc.mkv": {"codec": "libx265", "options": {"x265-params": X265 + ":open-gop=1"}},
    "hevc.ts": {"codec": "libx265", "options": {"x265-params": X265 + ":open-gop=1:bframes=6"}},
    "av1.mp4": {"codec": "libsvtav1", "options": {"preset": "12"}},
    "av1.mkv": {"codec": "libsvtav1", "options": {"preset": "12"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "good", "cpu-used": "5", "lag-in-frames": "16"}},
    "vp9.mp4": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "mpeg4.mp4": {"codec": "mpeg4", "options": {"bf": "2"}},
    "mpeg4.mkv": {"codec": "mpeg4", "options": {"bf": "2", "flags": "+qpel+mv4"}},
    "mpeg2.ts": {"codec": "mpeg2video", "options": {"bf": "2"}},
    "mpeg2.vob": {"codec": "mpeg2video", "options": {"bf": "2"}},
    "mpeg1.mpg": {"codec": "mpeg1video", "options": {"bf": "2"}},
    "flv1.flv": {"codec": "flv"},
    "wmv2.wmv": {"codec": "wmv2"},
    "wmv1.asf": {"codec": "wmv1"},
    "msmpeg4.avi": {"codec": "msmpeg4"},
    "ffv1.mkv": {"codec": "ffv1"},
    "huffyuv.avi": {"codec": "ffvhuff"},
    "vfr.mp4": {"times_ms": [0, 40, 55, 170, 180, 260, *range(300, 4000, 37)], "options": {"bf": "3"}},
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("entries")
    return functools.cache(lambda name: render(folder / name, **(FAST | THOROUGH)[name]))


def requests(num_frames, count, seed):
    """Single frames, windows and scattered frames, in any order; among them the frames around every keyframe."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        first = int(rng.integers(num_frames))
        yield [
            [first],
            list(range(first, min(first + 6, num_frames))),
            rng.integers(num_frames, size=rng.integers(2, 7)).tolist(),
        ][number % 3]


def require_equal_looks(path, count):
    """Each look equals the pass over the clip, alone and through caches that hold much, little and nothing, and one on
    disk."""
    index = index_video(path)
    whole, times_s, damaged = read_frames(index, index.times_s_N, SIZE)
    assert damaged == 0 and times_s == tuple(index.times_s_N)
    caches = [FrameCache(*budgets) for budgets in ((0,), (600_000,), (64 << 20,), (600_000, 64 << 20))]
    for number, look in enumerate(requests(index.num_frames, count, seed=7)):
        asked_s = [index.times_s_N[frame] for frame in look]
        through = caches[number % len(caches)]
        for pixels, shown_s, bad in (
            read_frames(index, asked_s, SIZE),
            read_frames_through(through, index, asked_s, SIZE),
        ):
            assert (pixels == whole[look]).all() and list(shown_s) == asked_s and bad == 0, look


@pytest.mark.parametrize("name", FAST)
def test_a_look_is_what_the_pass_over_the_clip_shows(clip, name):
    require_equal_looks(clip(name), count=9)


@pytest.mark.thorough
@pytest.mark.parametrize("name", FAST | THOROUGH)
def test_any_look_is_what_the_pass_over_the_clip_shows(clip, name):
    require_equal_looks(clip(name), count=15)


def test_a_decoder_that_goes_by_the_first_packet_has_read_it():
    """4:4:4 by x264 of 2014: who encoded it stands in the first packet, and without it every block is noise."""
    require_equal_looks(CASES / "h264_444_old_x264.mp4", count=4)


@pytest.mark.parametrize("name", ["h264.mp4", "mpeg4.mp4", "hevc.mp4"])
def test_packets_that_are_falsely_called_keyframes_are_no_entries(clip, tmp_path, name):
    """A table of keyframes that is missing says that every packet is one."""
    content = clip(name).read_bytes()
    path = tmp_path / name
    path.write_bytes(content.replace(b"stss", b"free"))
    assert b"stss" in content
    require_equal_looks(path, count=9)


def test_parameter_sets_that_only_an_earlier_packet_brought_are_not_missed(tmp_path):
    """Two encodings in one stream; the sets of the second stand in front of its first picture alone."""
    first, second = (
        render(tmp_path / f"{coder}.h264", frames=40, options={"bf": "0", "coder": coder}).read_bytes()
        for coder in ("ac", "vlc")
    )
    sets = second[: second.index(b"\0\0\1\x65")]
    later = b"".join(unit for unit in units_of(second[len(sets) :]) if unit[3] & 0x1F in (1, 5))
    path = tmp_path / "joined.h264"
    path.write_bytes(first + sets + later)
    require_equal_looks(path, count=12)


def units_of(content):
    places = [0]
    while (place := content.find(b"\0\0\1", places[-1] + 3)) >= 0:
        places.append(place)
    return [content[start:end] for start, end in zip(places, [*places[1:], len(content)], strict=True)]


# Damage ---------------------------------------------------------------------------------------------------------------


def test_a_look_of_one_frame_that_is_damaged_is_refused(tmp_path):
    index = index_video(damage(render(tmp_path / "spot.mp4", gop=1), [50]))
    with pytest.raises(CorruptVideoError, match="1 of 1 frames asked for are damaged"):
        read_frames(index, [2.0], SIZE)
    with pytest.raises(CorruptVideoError, match="1 of 9 frames"):
        read_frames(index, np.arange(45, 54) / 25, SIZE)
    assert read_frames(index, np.arange(45, 55) / 25, SIZE)[2] == 1


@pytest.mark.parametrize("gop", [1, 20])
def test_what_stands_in_for_a_damaged_frame_does_not_depend_on_what_else_is_wanted(tmp_path, gop):
    """Its neighbours, though nobody asked for them."""
    index = index_video(damage(render(tmp_path / "spot.mp4", gop=gop, options={"bf": "2"}), [41, 57]))
    whole, times_s, damaged = read_frames(index, index.times_s_N, SIZE)
    rng = np.random.default_rng(3)
    assert 2 <= damaged <= 5
    for _ in range(6):
        look = np.sort(rng.choice(100, size=60, replace=False))
        pixels, shown_s, _ = read_frames(index, index.times_s_N[look], SIZE)
        assert shown_s == tuple(times_s[number] for number in look)
        assert (pixels == whole[look]).all()


# Hidden frames, shapes ------------------------------------------------------------------------------------------------


def test_frames_that_are_never_shown_are_not_counted():
    """Of 17 packets two are references only: made by an encoder that does not join them with the next."""
    index = index_video(CASES / "vp9_hidden_frames.webm")
    assert (index.num_frames, index.native_fps) == (15, pytest.approx(23.976, abs=0.05))
    require_equal_looks(CASES / "vp9_hidden_frames.webm", count=9)


@pytest.mark.parametrize(
    ("aspect", "shape"),
    [(Fraction(1), SIZE), (Fraction(2), (96, 256)), (Fraction(1, 2), (192, 128)), (Fraction(12, 11), (96, 140))],
)
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_pixels_are_made_square_and_none_is_lost(tmp_path, aspect, shape, suffix):
    index = index_video(render(tmp_path / f"clip.{suffix}", frames=3, pixel_aspect=aspect))
    assert (index.height, index.width) == shape


def test_a_turned_clip_with_long_pixels_is_turned_after_they_are_made_square(tmp_path):
    index = index_video(render(tmp_path / "clip.mp4", frames=3, pixel_aspect=Fraction(2), rotation=90))
    assert (index.height, index.width) == (256, 96)


def test_pixels_of_an_absurd_shape_are_refused(tmp_path):
    path = render(tmp_path / "clip.mp4", frames=3, pixel_aspect=Fraction(20))
    with pytest.raises(CorruptVideoError, match=r"pixels are 20 times as wide as high; .*setsar=1"):
        index_video(path)
