"""The rollout pool, one group after the other: whatever is ready is handed over, workers are kept busy and no more."""

import asyncio
import os
import time
from functools import partial

import pytest

from rl.trajectory import AnswerKind, StopReason, Trajectory, TrajectoryGroup, VideoTask

pytestmark = pytest.mark.ray


class ScriptedPlayer:
    """Plays a task as its name says, and notes in the group how many it had at the time."""

    def __init__(self, folder):
        self._folder, self._now = folder, 0

    async def play(self, task, *, step, greedily, occurrence=0):
        self._now += 1
        most = self._now
        if task.task_id.startswith("dies"):
            os._exit(1)
        if task.task_id.startswith("hangs"):
            await asyncio.sleep(3600)
        if task.task_id.startswith("fails"):
            raise ValueError("the engine returned no token")
        if task.task_id.startswith("waits"):  # until the last task is done
            while not (self._folder / "last").exists():
                await asyncio.sleep(0.01)
        for _ in range(3):
            await asyncio.sleep(0)
            most = max(most, self._now)
        if task.task_id.startswith("last"):
            (self._folder / "last").touch()
        self._now -= 1
        told = Trajectory((), StopReason.ANSWERED, f"{task.task_id} {step} {greedily}")
        return TrajectoryGroup(task, (told,), None, seconds={"most": float(most), "pid": float(os.getpid())})


@pytest.fixture
def pool_of(ray_cluster, tmp_path):
    from actors.rollout import RolloutPool

    def make(workers=2, timeout_s=60.0):
        name = time.monotonic_ns()
        return RolloutPool(
            partial(ScriptedPlayer, tmp_path),
            workers,
            lambda index: {"num_cpus": 0.1, "name": f"rollout/{index}/{name}"},
            timeout_s=timeout_s,
        )

    return make


def tasks(*names):
    return [VideoTask(name, "v.mp4", "?", "A", AnswerKind.LETTER) for name in names]


def play(pool, named, in_flight=2):
    for finished in pool.play(tasks(*named), step=-1, greedily=True, in_flight=in_flight):
        assert finished
        yield from finished


def test_every_task_comes_back_once_with_its_place(pool_of):
    names = [f"q{i}" for i in range(9)]
    played = dict(play(pool_of(), names))
    assert sorted(played) == list(range(9))
    assert all(group.trajectories_G[0].answer_text == f"q{i} -1 True" for i, group in played.items())


def test_a_slow_task_does_not_hold_up_the_others(pool_of):
    order = [place for place, _ in play(pool_of(), ["waits", "a", "b", "c", "d", "last"])]
    assert sorted(order) == list(range(6))
    assert order.index(0) > order.index(5)  # "waits" ends only after "last" has begun, four tasks later


def test_no_worker_holds_more_than_it_may_and_all_have_work(pool_of):
    groups = [group for _, group in play(pool_of(workers=2), [f"q{i}" for i in range(12)], in_flight=3)]
    assert max(group.seconds["most"] for group in groups) <= 3
    assert len({group.seconds["pid"] for group in groups}) == 2


def test_one_at_a_time_is_in_order(pool_of):
    assert [place for place, _ in play(pool_of(workers=1), list("abcd"), in_flight=1)] == [0, 1, 2, 3]


def test_without_tasks_there_is_nothing_to_wait_for(pool_of):
    assert list(play(pool_of(), [])) == []


def failing(pool, named):
    from actors.rollout import RolloutError

    done = []
    with pytest.raises(RolloutError) as caught:
        for place, _ in play(pool, named, in_flight=1):
            done.append(named[place])
    return done, str(caught.value)


def test_a_worker_that_dies_is_an_error_and_what_was_finished_is_there(pool_of):
    done, said = failing(pool_of(workers=1), ["a", "b", "dies", "c"])
    assert done == ["a", "b"]
    assert "could not play task dies: a worker died" in said


def test_a_task_that_fails_is_named_with_its_cause(pool_of):
    done, said = failing(pool_of(workers=1), ["a", "fails"])
    assert done == ["a"] and said == "could not play task fails: ValueError: the engine returned no token"


def test_a_task_that_never_ends_meets_the_deadline(pool_of):
    pool = pool_of(workers=1, timeout_s=20.0)
    assert len(list(play(pool, ["a"]))) == 1  # it has started
    pool._timeout_s = 0.5
    done, said = failing(pool, ["hangs"])
    assert done == [] and "none of 1 tasks was finished within 0.5 s" in said
