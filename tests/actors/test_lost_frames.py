"""Groups that are lost on their way to the learners, whole or in part, are made again before any rank begins."""

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
from tests.lost_objects import lost
from tests.remote_groups import remote

pytestmark = pytest.mark.ray

PIXELS = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)


class Learns:
    """Says what it was given: the sum of all pixels, group by group."""

    def learn(self, scored, version, step):
        sums = [float(one.group.coarse_frames.pixels_THWC.sum()) for one in scored]
        return LearnerUpdate({"loss/surrogate": sum(sums)}, tuple(() for _ in scored), steps_taken=1)


def make_learner(**_place):
    return Learns()


def group(name, pixels):
    frames = Frames(pixels, (0.0, 0.5), (2,), 4, 4, digest="v")
    turn = Turn((1, 2), Completion((3,), (-0.1,), "stop", 0), Segment.REASONING)
    task = VideoTask(name, "v.mp4", "?", "A", AnswerKind.LETTER)
    return TrajectoryGroup(task, (Trajectory((turn,), StopReason.ANSWERED),), frames)


def scored(name, reference, pixels):
    whole = group(name, None)
    return ScoredGroup(remote(whole, reference, pixels), (SegmentRewards(None, 1.0, {}),))


@pytest.fixture
def learners_of(ray_cluster):
    from actors.learner_group import LearnerGroup

    opened = []

    def make(restore=None, recorded=0):
        name = f"lost-frames-{len(opened)}"
        settings = {"start_timeout_s": 60.0, "timeout_s": 60.0, "restore": restore}
        settings["recorded_trajectories"] = recorded
        opened.append(
            LearnerGroup(make_learner, 2, lambda rank: {"num_cpus": 0.1, "name": f"{name}/{rank}"}, **settings)
        )
        return opened[-1]

    yield make
    for learners in opened:
        learners.stop()


@pytest.fixture
def gone(ray_cluster):
    return lost(ray_cluster)


@pytest.mark.parametrize("part", ["group", "pixels"])
def test_lost_groups_are_restored_and_the_step_is_taken_with_every_group(learners_of, gone, ray_cluster, part):
    pixels, asked = ray_cluster.put({"v": PIXELS}), []

    def whole(name):
        return scored(name, ray_cluster.put(group(name, None)), pixels)

    def restore(some):
        asked.extend(one.group.task.task_id for one in some)
        return [whole(one.group.task.task_id) for one in some]

    b = whole("b")
    b = scored("b", gone, pixels) if part == "group" else scored("b", b.group.reference, gone)
    learners, sent = learners_of(restore), [whole("a"), b, whole("c"), whole("d")]
    arrived = learners.receive(sent)
    update = learners.update(step=0, version=0)
    assert arrived[0] is sent[0] and arrived[1] is not b  # what is reported is of the one made again
    assert asked == ["b"]
    assert update.metrics["loss/surrogate"] == 2 * float(PIXELS.sum())  # of rank 0, which holds half of the groups


def test_groups_that_stay_lost_end_the_attempt_with_a_reason(learners_of, gone):
    from actors.pending_write import LearnerError

    with pytest.raises(LearnerError, match="1 groups, or their pixels, got lost on their way"):
        learners_of(restore=list).receive([scored("a", gone, gone)])


def test_log_probs_come_back_for_the_groups_that_are_recorded(learners_of, ray_cluster):
    pixels = ray_cluster.put({"v": PIXELS})
    groups = [scored(name, ray_cluster.put(group(name, None)), pixels) for name in "abcdef"]
    for most in (0, 3):
        learners = learners_of(recorded=most)
        learners.receive(groups)
        assert len(learners.update(step=0, version=0).logprobs_PG) == most
