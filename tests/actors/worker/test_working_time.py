"""Working time: overlapping pieces of work count once, and what is under way is cut where it is asked for."""

import pytest

from actors.worker.working_time import WorkingTime
from rl.tracking.lanes import MOST_SPANS


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_pieces_that_overlap_are_one_time_of_work(clock):
    working = WorkingTime(clock)
    first, second = working.__enter__(), working
    clock.now = 2.0
    with second:
        clock.now = 3.0
        first.__exit__(None, None, None)
        clock.now = 5.0
    clock.now = 7.0
    with working:
        clock.now = 8.0
    assert working.take() == [(0.0, 5.0), (7.0, 8.0)]
    assert working.take() == []


def test_what_is_under_way_goes_on_in_the_next_answer(clock):
    working = WorkingTime(clock)
    with working:
        clock.now = 4.0
        assert working.take() == [(0.0, 4.0)]
        clock.now = 6.0
    assert working.take() == [(4.0, 6.0)]


def test_work_that_fails_ends_all_the_same(clock):
    working = WorkingTime(clock)
    with pytest.raises(ValueError), working:
        clock.now = 1.0
        raise ValueError
    clock.now = 9.0
    assert working.take() == [(0.0, 1.0)]


def test_a_clock_that_is_set_back_makes_no_negative_time(clock):
    working = WorkingTime(clock)
    clock.now = 5.0
    with working:
        clock.now = 3.0
    assert working.take() == [(5.0, 5.0)]


def test_times_that_nobody_takes_are_bounded(clock):
    working = WorkingTime(clock)
    for _ in range(10_000):
        with working:
            clock.now += 1.0
        clock.now += 1.0
    assert len(working._intervals) < 4 * MOST_SPANS
    taken = working.take()
    assert len(taken) == MOST_SPANS and (taken[0][0], taken[-1][1]) == (0.0, 19_999.0)
