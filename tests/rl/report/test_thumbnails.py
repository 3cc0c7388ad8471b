"""Thumbnails fit their budget exactly: shrunk first, then kept for fewer trajectories, evenly over the steps."""

import base64
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rl.report.steps import FrameNeeds
from rl.report.thumbnails import (
    LADDER,
    ClipThumbnails,
    FramesUnavailableError,
    Rung,
    encode,
    evenly,
    fit,
    make_thumbnails,
    plan,
)


class NoisyClips:
    """Clips of noise, 128 pixels wide: what compresses worst. Some cannot be read."""

    def __init__(self, unreadable=()):
        self.unreadable, self.decoded = unreadable, []

    def duration_s(self, video):
        if video in self.unreadable:
            raise FramesUnavailableError(f"{video}: cannot be opened")
        return 8.0

    def frames(self, video, times_ms, longest_side):
        self.duration_s(video)
        self.decoded.append((video, tuple(times_ms)))
        rng = np.random.default_rng(len(video))
        return [rng.integers(0, 255, (72, 128, 3), np.uint8) for _ in times_ms]


def needs(count, frames=4):
    return [FrameNeeds(f"clip{i}", frozenset(range(frames))) for i in range(count)]


def kept_bytes(thumbnails):
    return sum(len(image) for clip in thumbnails.clips.values() for image in clip.images.values())


def test_with_room_everyone_has_large_thumbnails():
    thumbnails = make_thumbnails(needs(3), NoisyClips(), room_bytes=10**6)
    assert thumbnails.rung == LADDER[0] and thumbnails.shown == thumbnails.wanted == 3
    image = Image.open(io.BytesIO(base64.b64decode(thumbnails.clips["clip0"].images[0])))
    assert image.format == "WEBP" and max(image.size) == 128


def test_a_frame_that_many_saw_is_decoded_and_kept_once():
    source = NoisyClips()
    same = [FrameNeeds("clip", frozenset({0, 40})), FrameNeeds("clip", frozenset({0, 80}))]
    thumbnails = make_thumbnails(same, source, room_bytes=10**6)
    assert source.decoded[-1] == ("clip", (0, 40, 80))
    assert sorted(thumbnails.clips["clip"].images) == [0, 40, 80] and thumbnails.shown == 2


@pytest.mark.parametrize("room_bytes", [0, 500, 9_000, 20_000, 40_000])
def test_what_is_kept_fits_and_each_trajectory_has_all_its_frames_or_none(room_bytes):
    wanted = needs(6)
    thumbnails = make_thumbnails(wanted, NoisyClips(), room_bytes)
    assert kept_bytes(thumbnails) <= room_bytes
    counts = [len(clip.images) for clip in thumbnails.clips.values()]
    assert set(counts) <= {0, 4} and sum(count == 4 for count in counts) == thumbnails.shown
    assert thumbnails.shown < 6


def test_the_ladder_shrinks_before_it_leaves_out():
    weights = {Rung(128, 65): 3000.0, Rung(96, 55): 1500.0, Rung(72, 45): 750.0}
    wanted = needs(10)  # 40 frames; base64 makes 1500 bytes 2000, and 16 go to the key
    assert plan(wanted, weights, 200_000) == (Rung(128, 65), 10)  # 40 * 4016 = 160 640
    assert plan(wanted, weights, 100_000) == (Rung(96, 55), 10)  # 40 * 2016 =  80 640
    assert plan(wanted, weights, 45_000) == (Rung(72, 45), 10)  # 40 * 1016 =  40 640
    assert plan(wanted, weights, 22_000) == (Rung(72, 45), 5)  # 95 % of it: 20 frames are 20 320


def test_a_clip_that_cannot_be_read_costs_nothing_and_tells_why():
    thumbnails = make_thumbnails(needs(2), NoisyClips(unreadable=("clip1",)), room_bytes=10**6)
    assert thumbnails.clips["clip1"].problem == "clip1: cannot be opened" and not thumbnails.clips["clip1"].images
    assert thumbnails.shown == 2 and thumbnails.clips["clip0"].images


@settings(deadline=None)
@given(st.integers(1, 120))
def test_every_beginning_of_the_order_is_spread_evenly(count):
    order = evenly(count)
    assert sorted(order) == list(range(count))
    for length in range(2, count + 1):
        gaps = np.diff(sorted(order[:length]))
        assert gaps.max() <= 2 * gaps.min() or gaps.max() - gaps.min() <= max(1, 2 * count // length)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.frozensets(st.integers(0, 5), max_size=4)), max_size=12),
    st.integers(0, 400),
)
def test_fit_never_exceeds_the_room_and_keeps_whole_trajectories(wanted, room_bytes):
    trajectories = [FrameNeeds(f"clip{clip}", times) for clip, times in wanted]
    images = {time: "x" * (10 + 7 * time) for time in range(6)}
    clips = {f"clip{clip}": ClipThumbnails(8.0, images) for clip in range(4)}
    kept, shown = fit(trajectories, clips, room_bytes)
    used = sum(len(clips[video].images[time]) + 16 for video, times in kept.items() for time in times)
    assert used <= room_bytes
    complete = [need for need in trajectories if need.times_ms <= kept.get(need.video, set())]
    assert shown <= len(complete)
    for video, times in kept.items():
        assert times == set().union(*(need.times_ms for need in complete if need.video == video))


def test_a_small_frame_is_not_enlarged():
    image = Image.open(io.BytesIO(encode(np.zeros((56, 28, 3), np.uint8), LADDER[0])))
    assert image.size == (28, 56)
