"""Which group is handed out next: what somebody waits for, then step by step; of a step, the longest expected first."""

import pytest

from actors.rollout_requests import GenerationOptions, RolloutBatch, RolloutRequest, WaitingRequests
from rl.trajectory import AnswerKind, Completion, Segment, StopReason, Trajectory, TrajectoryGroup, Turn, VideoTask
from tests.remote_groups import remote


def task(name):
    return VideoTask(name, "v.mp4", "?", "A", AnswerKind.LETTER)


def group(name, *siblings):
    """`siblings`: tokens of the prompt and tokens sampled, of each."""
    turns = [
        Turn((0,) * read, Completion((1,) * said, (0.0,) * said, "stop", 0), Segment.REASONING)
        for read, said in siblings
    ]
    return remote(TrajectoryGroup(task(name), tuple(Trajectory((turn,), StopReason.ANSWERED) for turn in turns), None))


def batch(serial, *, is_urgent=False):
    return RolloutBatch(serial, GenerationOptions(0, False, 1, is_urgent=is_urgent), 1, 1.0)


def in_line(waiting, *requests):
    for request in requests:
        waiting.add(request)
    return [waiting.pop().task.task_id for _ in range(len(waiting))]


def requests(of, *names):
    return [RolloutRequest(of, index, task(name), 0) for index, name in enumerate(names)]


@pytest.mark.parametrize(
    ("met", "order"),
    [
        ([], ["a", "b", "c"]),  # nothing is known: as they come
        ([group("c", (32, 9)), group("a", (32, 2))], ["c", "b", "a"]),  # one not met before is taken for the mean
        ([group("b", (0, 1), (0, 30)), group("a", (0, 20), (0, 20))], ["b", "c", "a"]),  # the longest sibling counts
        ([group("a", (320, 5)), group("b", (0, 12))], ["a", "c", "b"]),  # and what it has to read
        ([group("c", (0, 50)), group("b", (0, 20)), group("c", (0, 1))], ["b", "a", "c"]),  # as it was the last time
    ],
)
def test_the_longest_expected_group_is_handed_out_first(met, order):
    waiting = WaitingRequests()
    for one in met:
        waiting.finished(one)
    assert in_line(waiting, *requests(batch(0), "a", "b", "c")) == order


def test_what_somebody_waits_for_goes_before_what_is_made_in_advance_and_steps_go_in_order():
    later, sooner, urgent = batch(1), batch(0), batch(2, is_urgent=True)
    mixed = [*requests(later, "l"), *requests(sooner, "s"), *requests(urgent, "u")]
    assert in_line(WaitingRequests(), *mixed) == ["u", "s", "l"]


def test_a_group_that_lost_its_worker_goes_on_before_others_begin():
    waiting, (a, b) = WaitingRequests(), requests(batch(0), "a", "b")
    b.losses = 1
    assert in_line(waiting, a, b) == ["b", "a"]


def test_a_batch_that_is_given_up_is_forgotten():
    waiting, kept = WaitingRequests(), batch(0)
    dropped = batch(1)
    for request in (*requests(dropped, "a", "b"), *requests(kept, "c")):
        waiting.add(request)
    waiting.drop(dropped)
    assert len(waiting) == 1 and waiting.first().task.task_id == "c"
