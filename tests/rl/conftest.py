"""Trajectories and groups that fit in the eye: one context token before every turn, token ids counted up from 10."""

from itertools import count

import numpy as np
import pytest

from rl.trajectory import (
    AnswerKind,
    Completion,
    Frames,
    MalformedCall,
    ScoredGroup,
    Segment,
    SegmentRewards,
    StopReason,
    TimeSpan,
    Trajectory,
    TrajectoryGroup,
    Turn,
    VideoTask,
)


@pytest.fixture(scope="session")
def trajectory():
    """`trajectory(sampling=2, reasoning=1)`: tokens per segment; sampling=0 never called, a tuple: several calls."""

    def make(sampling=0, reasoning=1, stop=StopReason.ANSWERED, frames=None, version=0):
        ids = count(10)
        calls = [n for n in (sampling if isinstance(sampling, tuple) else (sampling,)) if n]

        def turn(tokens, call=None, shown=None):
            said = tuple(next(ids) for _ in range(tokens + 1))
            completion = Completion(said[1:], tuple(-0.1 * k for k in range(1, tokens + 1)), "stop", version)
            segment = Segment.SAMPLING if call else Segment.REASONING
            return Turn(said[:1], completion, segment, call, shown)

        looks = [turn(n, MalformedCall("hand-made"), frames if i else None) for i, n in enumerate(calls)]
        last = [turn(reasoning, shown=frames if calls else None)] if reasoning else []
        return Trajectory((*looks, *last), stop)

    return make


@pytest.fixture(scope="session")
def block():
    """A small video block; equal digests are equal videos."""

    def make(digest="v0", num_frames=2):
        pixels = np.zeros((num_frames, 28, 28, 3), np.uint8)
        return Frames(pixels, tuple(map(float, range(num_frames))), (num_frames,), 28, 28, digest)

    return make


@pytest.fixture(scope="session")
def scored_group():
    """`scored_group([trajectory, ...], [(R_samp, R_reason), ...])`; an outcome that is no pair stands as it is."""

    def make(trajectories, rewards, coarse_frames=None):
        task = VideoTask("t", "/clip.mp4", "?", "B", AnswerKind.LETTER, TimeSpan(0, 1), 2.0)
        outcomes = [SegmentRewards(*r, breakdown={}) if isinstance(r, tuple) else r for r in rewards]
        return ScoredGroup(TrajectoryGroup(task, tuple(trajectories), coarse_frames), tuple(outcomes))

    return make
