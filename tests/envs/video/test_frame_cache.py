"""A group decodes its clip about once, whatever the sizes, and sees what it would see without a frame cache."""

import os
import tempfile
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs.video import forward_pass, pixel_store
from envs.video.decoding_cost import PassTime, packets_to_decode
from envs.video.frame_cache import FrameCache, read_frames_through
from envs.video.indexing import index_video
from envs.video.reader import CorruptVideoError, read_frames
from tests.envs.video.clips import HEIGHT, WIDTH, damage, numbers_in, render

SIZE, SMALL = (HEIGHT, WIDTH), (28, 56)
FRAME_BYTES = HEIGHT * WIDTH * 3
MIB = 2**20
COARSE_S = tuple(i / 2 for i in range(8))
BUDGETS = {  # of memory and of disk, for a clip of 100 frames that takes 1.8 MiB as decoded and 3.5 as RGB
    "as decoded": (64 * MIB, 0),
    "small RGB in memory": (800_000, 0),
    "RGB on disk": (1_000_000, 64 * MIB),
    "asked frames only": (1_000_000, 0),
    "nothing": (0, 64 * MIB),
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    home = tmp_path_factory.mktemp("clips")
    return {
        "H.264": index_video(render(home / "a.mp4", options={"bf": "3"})),
        "one keyframe": index_video(render(home / "b.mkv", gop=1000, options={"sc_threshold": "0"})),
        "keyframes only": index_video(render(home / "c.mp4", gop=1)),
        "uneven times": index_video(render(home / "d.mp4", times_ms=[n * 37 + n % 3 for n in range(100)])),
        "without a clock": index_video(render(home / "e.avi", "mpeg4")),
        "open groups": index_video(render(home / "f.mp4", "mpeg4", options={"bf": "2"})),
        "one spot damaged": index_video(damage(render(home / "g.mp4", options={"bf": "2"}), [41, 57])),
        "keyframes damaged": index_video(damage(render(home / "h.mp4", gop=1), [30, 50, 51])),
    }


@pytest.fixture
def decoded(monkeypatch):
    """Pictures per packet that is decoded from here on."""
    counted, decode_packet = [], forward_pass.decode_packet

    def counting(*arguments):
        pictures = decode_packet(*arguments)
        counted.append(len(pictures or ()))
        return pictures

    monkeypatch.setattr(forward_pass, "decode_packet", counting)
    return counted


def equal(one, other):
    return (one[0] == other[0]).all() and one[1:] == other[1:]


def outcome(read, *asked):
    """What is shown, or that it is refused."""
    try:
        pixels_THWC, shown_s, damaged = read(*asked)
    except CorruptVideoError as error:
        return str(error)
    return pixels_THWC.tobytes(), shown_s, damaged


sizes = st.sampled_from([SIZE, SMALL])
requests = st.tuples(st.lists(st.floats(0, 3.6), min_size=1, max_size=12), sizes, sizes | st.none())


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(BUDGETS)), st.data())
def test_what_was_asked_before_and_what_is_kept_of_it_never_changes_a_pixel(clips, budget, data):
    index, cache = clips[data.draw(st.sampled_from(sorted(clips)))], FrameCache(*BUDGETS[budget])
    for times_s, size, later in data.draw(st.lists(requests, min_size=1, max_size=4)):
        through_cache = outcome(read_frames_through, cache, index, times_s, size, later)
        assert through_cache == outcome(read_frames, index, times_s, size)
    assert cache.held_bytes <= cache.budget_bytes and cache.held_disk_bytes <= cache.disk_budget_bytes


@pytest.mark.parametrize("budget", ["as decoded", "small RGB in memory", "RGB on disk"])
def test_looks_after_a_coarse_pass_decode_nothing_though_they_are_of_another_size(clips, decoded, budget):
    index, cache = clips["one keyframe"], FrameCache(*BUDGETS[budget])
    coarse, look = (SIZE, SMALL) if budget == "small RGB in memory" else (SMALL, SIZE)
    read_frames_through(cache, index, COARSE_S, coarse, look)
    assert sum(decoded) == index.num_frames  # once

    pixels, times_s, _ = read_frames_through(cache, index, (1.0, 1.04, 3.5), look)
    assert sum(decoded) == index.num_frames and times_s == (1.0, 1.04, 3.48)
    if look == SIZE:
        assert numbers_in(pixels) == [25, 26, 87]
    read_frames_through(cache, index, COARSE_S, coarse)  # of the next group on this clip
    assert sum(decoded) == index.num_frames


def test_a_size_that_nobody_announced_costs_one_more_pass_and_not_one_per_look(clips, decoded):
    index, cache = clips["one keyframe"], FrameCache(*BUDGETS["RGB on disk"])
    for times_s, size in ((COARSE_S, SMALL), ((3.0, 3.1), SIZE), ((0.5, 2.0), SIZE), ((3.5, 3.6), SIZE)):
        read_frames_through(cache, index, times_s, size)
    assert sum(decoded) == 2 * index.num_frames


def test_a_clip_that_fits_nowhere_is_decoded_request_by_request_and_equal_windows_once(clips, decoded):
    index, cache = clips["H.264"], FrameCache(*BUDGETS["asked frames only"])
    read_frames_through(cache, index, (1.0, 1.5), SIZE)
    once = len(decoded)
    assert 0 < once < index.num_frames / 2

    read_frames_through(cache, index, (1.5, 1.0, 1.0), SIZE)
    assert len(decoded) == once


def test_a_pass_that_decodes_a_small_part_of_a_clip_is_not_made_a_whole_one(clips, decoded):
    index, cache = clips["keyframes only"], FrameCache(*BUDGETS["as decoded"])
    read_frames_through(cache, index, COARSE_S, SIZE)
    assert len(decoded) == len(COARSE_S)


def test_a_clip_that_nobody_will_look_at_again_is_not_kept_whole(clips, decoded):
    index, cache = clips["one keyframe"], FrameCache(*BUDGETS["as decoded"])
    read_frames_through(cache, index, COARSE_S, SIZE, (0, 0))
    assert sum(decoded) < index.num_frames and cache.held_bytes == len(COARSE_S) * FRAME_BYTES


@pytest.mark.parametrize(
    ("clip", "numbers", "packets"),
    [
        ("keyframes only", (0, 50, 99), 3),
        ("one keyframe", (0, 50, 99), 100),
        ("one keyframe", (0,), 1),
        ("without a clock", (99,), 20),  # the order of its pictures is read, and so are its keyframes
    ],
)
def test_what_a_pass_decodes_is_known_before(clips, clip, numbers, packets):
    assert packets_to_decode(clips[clip], numbers) == pytest.approx(packets, abs=1)


class Seconds:
    def __init__(self, per_look):
        self.now, self._per_look = -per_look, per_look

    def __call__(self):
        self.now += self._per_look
        return self.now


@pytest.mark.parametrize(("limit_s", "is_short"), [(None, False), (100.0, False), (10.0, True)])
def test_what_nobody_asked_for_takes_no_time_that_the_request_needs(clips, limit_s, is_short):
    """64 pictures took 8 s: what is still to be decoded, 99 packets at most, takes 12 s more."""
    time_left = PassTime(clips["one keyframe"], [99], limit_s, clock=Seconds(8.0))
    assert any(time_left.is_short(number, keeps_nothing=False) for number in range(64)) == is_short


@pytest.mark.parametrize("budget", ["as decoded", "RGB on disk"])
def test_where_time_is_short_the_rest_is_kept_as_it_is_looked_at(clips, decoded, monkeypatch, budget):
    index, cache = clips["one keyframe"], FrameCache(*BUDGETS[budget])
    monkeypatch.setattr("envs.video.decoding_cost.PICTURES_BETWEEN_LOOKS", 40)
    asked = (0.0, 1.0, 2.0)
    first = read_frames_through(cache, index, asked, SIZE, cpu_limit_s=1e-9)
    assert equal(first, read_frames(index, asked, SIZE)) and len(decoded) < 3 * index.num_frames

    for window in ((1.0, 1.2), (3.0, 3.4), (1.4, 3.2)):
        before = len(decoded)
        assert equal(read_frames_through(cache, index, window, SIZE), read_frames(index, window, SIZE))
    del decoded[:]
    read_frames_through(cache, index, (0.1, 1.3, 3.3), SIZE)  # all of it has been passed by now
    assert len(decoded) == 0 and before


def test_a_full_disk_costs_what_was_kept_and_nothing_else(clips, monkeypatch, caplog):
    index, cache = clips["one keyframe"], FrameCache(*BUDGETS["RGB on disk"])
    written = []

    def pwrite(descriptor, content, offset):
        if len(written) == 30:
            raise OSError(28, "No space left on device")
        written.append(offset)
        return real(descriptor, content, offset)

    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", pwrite)
    assert equal(read_frames_through(cache, index, COARSE_S, SIZE), read_frames(index, COARSE_S, SIZE))
    assert cache.held_disk_bytes == 0 and len(written) == 30
    assert "b.mkv" in caplog.text and "No space left on device" in caplog.text and "TMPDIR" in caplog.text


def test_no_more_than_a_share_of_a_disk_is_taken(clips, monkeypatch):
    index, cache = clips["one keyframe"], FrameCache(*BUDGETS["RGB on disk"])
    monkeypatch.setattr("envs.video.frame_cache.free_disk_bytes", lambda: 99 * FRAME_BYTES)
    read_frames_through(cache, index, COARSE_S, SIZE)
    assert cache.held_disk_bytes == 0
    assert pixel_store.free_disk_bytes() > 0


def test_frames_on_disk_leave_no_file_behind(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    index, cache = clips["one keyframe"], FrameCache(*BUDGETS["RGB on disk"])
    read_frames_through(cache, index, COARSE_S, SIZE)

    assert cache.held_disk_bytes == 100 * FRAME_BYTES
    assert list(tmp_path.iterdir()) == []  # not even a process that is killed leaves one


def test_frames_that_cannot_be_read_back_are_decoded_again(clips, monkeypatch, caplog):
    index, cache = clips["one keyframe"], FrameCache(*BUDGETS["RGB on disk"])
    read_frames_through(cache, index, COARSE_S, SIZE)

    def fails(*_):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as failing:
        failing.setattr(os, "preadv", fails)
        assert equal(read_frames_through(cache, index, (1.0, 1.5), SIZE), read_frames(index, (1.0, 1.5), SIZE))
    assert "b.mkv: its frames cannot be read back" in caplog.text and cache.held_disk_bytes == 0


def test_the_oldest_clip_makes_room_on_its_own_medium(tmp_path):
    first, second = (index_video(render(tmp_path / f"{n}.mp4", gop=1000)) for n in range(2))
    cache = FrameCache(1_000_000, 150 * FRAME_BYTES)
    for index in (first, second):
        read_frames_through(cache, index, COARSE_S, SIZE)

    assert cache.find(first, SIZE) is None and cache.find(second, SIZE) is not None
    assert cache.held_disk_bytes == 100 * FRAME_BYTES


@pytest.mark.parametrize("budget", ["as decoded", "RGB on disk"])
def test_threads_that_read_while_others_push_a_clip_out_see_its_pixels(tmp_path, budget):
    indices = [index_video(render(tmp_path / f"{n}.mp4", frames=30, gop=1000)) for n in range(3)]
    one_clip = {"as decoded": (40 * indices[0].frame_bytes, 0), "RGB on disk": (300_000, 40 * FRAME_BYTES)}
    cache = FrameCache(*one_clip[budget])
    wrong = []

    def look(index):
        for start in (0.0, 0.3, 0.1):
            times_s = tuple(start + i / 10 for i in range(8))
            if not equal(read_frames_through(cache, index, times_s, SIZE), read_frames(index, times_s, SIZE)):
                wrong.append(index.path)

    threads = [threading.Thread(target=look, args=(index,)) for index in (*indices, *indices)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
