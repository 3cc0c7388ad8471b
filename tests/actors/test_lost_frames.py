"""Pixels that are lost on their way to the learners are made anew before any rank begins to learn."""

import time
from dataclasses import replace

import numpy as np
import pytest

from rl.trajectory import (
    AnswerKind,
    Completion,
    Frames,
    LearnerUpdate,
    ScoredGroup,
    Segment,
    SegmentRewards,
    StopReason,
    Trajectory,
    TrajectoryGroup,
    Turn,
    VideoTask,
)

pytestmark = pytest.mark.ray

PIXELS = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)


class Learns:
    """Says what it was given: the sum of all pixels, group by group."""

    def learn(self, scored, version):
        sums = [float(one.group.coarse_frames.pixels_THWC.sum()) for one in scored]
        return LearnerUpdate({"loss/surrogate": sum(sums)}, tuple(() for _ in scored), steps_taken=1)


def make_learner(**_place):
    return Learns()


class Holder:
    """Keeps small pixels in its own memory, and takes them along when it dies."""

    def hold(self):
        import ray

        return [ray.remote(lambda: PIXELS).options(num_cpus=0).remote()]


def group(name, pixels):
    frames = Frames(pixels, (0.0, 0.5), (2,), 4, 4, digest=name)
    turn = Turn((1, 2), Completion((3,), (-0.1,), "stop", 0), Segment.REASONING)
    task = VideoTask(name, "v.mp4", "?", "A", AnswerKind.LETTER)
    return TrajectoryGroup(task, (Trajectory((turn,), StopReason.ANSWERED),), frames)


def scored(name, pixels):
    return ScoredGroup(group(name, pixels), (SegmentRewards(None, 1.0, {}),))


@pytest.fixture
def learners_of(ray_cluster):
    from actors.learner import LearnerGroup

    opened = []

    def make(restore=None):
        name = f"lost-frames-{len(opened)}"
        settings = {"start_timeout_s": 60.0, "timeout_s": 60.0, "restore": restore}
        opened.append(
            LearnerGroup(make_learner, 2, lambda rank: {"num_cpus": 0.1, "name": f"{name}/{rank}"}, **settings)
        )
        return opened[-1]

    yield make
    for learners in opened:
        learners.stop()


@pytest.fixture
def lost(ray_cluster):
    holder = ray_cluster.remote(Holder).options(num_cpus=0).remote()
    (held,) = ray_cluster.get(holder.hold.remote())
    ray_cluster.kill(holder)
    deadline = time.monotonic() + 60
    while True:  # until its death has got about
        try:
            ray_cluster.get(held, timeout=5)
        except ray_cluster.exceptions.RayError:
            return held
        assert time.monotonic() < deadline


def test_lost_pixels_are_restored_and_the_step_is_taken_with_every_group(learners_of, lost, ray_cluster):
    asked = []

    def restore(groups):
        asked.extend(one.task.task_id for one in groups)
        fresh = ray_cluster.put(PIXELS)
        return [replace(one, coarse_frames=replace(one.coarse_frames, pixels_THWC=fresh)) for one in groups]

    whole = ray_cluster.put(PIXELS)
    update = learners_of(restore).update(
        [scored("a", whole), scored("b", lost), scored("c", whole), scored("d", whole)], step=0, version=0
    )
    assert asked == ["b"]
    assert len(update.logprobs_PG) == 4
    assert update.metrics["loss/surrogate"] == 2 * float(PIXELS.sum())  # of rank 0, which holds half of the groups


def test_pixels_that_stay_lost_end_the_attempt_with_a_reason(learners_of, lost):
    from actors.learner import LearnerError

    with pytest.raises(LearnerError, match="the pixels of 1 groups got lost on their way"):
        learners_of(restore=lambda groups: list(groups)).update([scored("a", lost)], step=0, version=0)
