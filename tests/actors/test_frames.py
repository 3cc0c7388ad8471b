"""Pixels travel as references: stored once, the same on arrival, and never inside what the driver holds."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from rl.trajectory import (
    AnswerKind,
    Completion,
    Frames,
    Segment,
    StopReason,
    TimeSpan,
    TrainingSample,
    Trajectory,
    TrajectoryGroup,
    Turn,
    VideoTask,
)

pytestmark = pytest.mark.ray


def block(seed, num_frames=16):
    pixels = np.random.default_rng(seed).integers(0, 256, (num_frames, 56, 56, 3), dtype=np.uint8)
    return Frames(pixels, tuple(map(float, range(num_frames))), (num_frames,), 56, 56, f"digest-{seed}")


def group_of_two():
    task = VideoTask("t", "clip.mp4", "?", "A", AnswerKind.LETTER, TimeSpan(0, 1), 2.0)
    said = Completion((5,), (-0.1,), "stop", 0)
    shared, own = block(1), block(2)

    def sibling(frames):
        return Trajectory(
            (Turn((1,), said, Segment.SAMPLING, None), Turn((2,), said, Segment.REASONING, None, frames)),
            StopReason.ANSWERED,
        )

    return TrajectoryGroup(task, (sibling(shared), sibling(own)), block(0)), (shared, own)


def test_a_group_arrives_with_the_pixels_it_was_parked_with(ray_cluster):
    from actors.groups import fetch_whole_groups, with_summary

    group, (first, second) = group_of_two()
    _, sent, pixels = with_summary(group)
    (arrived,) = fetch_whole_groups([(ray_cluster.put(sent), ray_cluster.put(pixels))])
    np.testing.assert_array_equal(arrived.coarse_frames.pixels_THWC, group.coarse_frames.pixels_THWC)
    for trajectory, sent in zip(arrived.trajectories_G, (first, second), strict=True):
        np.testing.assert_array_equal(trajectory.turns[1].frames.pixels_THWC, sent.pixels_THWC)
    assert arrived.trajectories_G[0].turns[1].frames.digest == first.digest


def test_a_parked_sample_weighs_nothing_and_a_block_seen_twice_is_stored_once(ray_cluster):
    from actors.frames import fetch_samples, park

    shown = block(1)
    zeros = (0.0,) * 3
    sample = TrainingSample(
        (7, 8, 9), (0, 0, 2), (0, 0, 0), zeros, zeros, (False, False, True), (-1, -1, 0), (shown,) * 2
    )
    parked = park(sample)
    first, second = (frames.pixels_THWC for frames in parked.videos)
    assert first == second
    assert len(pickle.dumps(replace(parked, videos=()))) < 4_000 < shown.pixels_THWC.nbytes
    (fetched,) = fetch_samples([parked])
    assert all((frames.pixels_THWC == shown.pixels_THWC).all() for frames in fetched.videos)


def test_a_group_without_video_travels_too(ray_cluster):
    from actors.frames import with_pixels, without_pixels

    group = replace(group_of_two()[0], trajectories_G=(Trajectory((), StopReason.VIDEO_ERROR),), coarse_frames=None)
    assert with_pixels(*without_pixels(group)) == group
