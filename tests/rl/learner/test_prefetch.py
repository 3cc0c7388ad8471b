"""Things made one ahead: in order, never more than two at a time, with their errors, and no thread afterwards."""

import threading
import weakref
from functools import partial

import pytest

from rl.learner.prefetch import OneAhead


class Thing:
    def __init__(self, number):
        self.number = number


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prepare")]


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_all_things_come_in_order(count):
    with OneAhead([partial(Thing, number) for number in range(count)]) as things:
        assert [thing.number for thing in things] == list(range(count))
    assert threads() == []


def test_the_next_is_made_while_this_one_is_in_use():
    begun = [threading.Event() for _ in range(3)]

    def make(number):
        begun[number].set()
        return number

    with OneAhead([partial(make, number) for number in range(3)]) as things:
        assert next(things) == 0
        assert begun[1].wait(10) and not begun[2].is_set()
        assert next(things) == 1
        assert begun[2].wait(10)


def test_at_most_two_are_there_at_a_time():
    alive, counted, made = weakref.WeakSet(), [], threading.Semaphore(0)

    def make(number):
        thing = Thing(number)
        alive.add(thing)
        counted.append(len(alive))
        made.release()
        return thing

    with OneAhead([partial(make, number) for number in range(20)]) as things:
        made.acquire(timeout=10)
        for thing in things:
            made.acquire(timeout=10 if thing.number < 19 else 0)  # in use while the next is made
            del thing  # as the loss of a micro-batch does, when it has been computed
    assert counted == [1, *[2] * 19]


def test_what_goes_wrong_is_raised_where_its_thing_is_asked_for_with_its_cause():
    def fail():
        try:
            raise OSError("no such clip")
        except OSError as error:
            raise ValueError("could not be packed") from error

    with OneAhead([partial(Thing, 0), fail, partial(Thing, 2)]) as things:
        assert next(things).number == 0
        with pytest.raises(ValueError, match="could not be packed") as raised:
            next(things)
    assert isinstance(raised.value.__cause__, OSError)
    assert threads() == []


def test_a_user_who_gives_up_leaves_no_thread_and_nothing_is_made_after():
    made = []
    with pytest.raises(RuntimeError), OneAhead([partial(made.append, number) for number in range(9)]) as things:
        next(things)
        raise RuntimeError
    assert len(made) <= 2 and threads() == []


def test_it_tells_how_long_was_waited():
    ready = threading.Event()
    with OneAhead([ready.wait, partial(Thing, 1)]) as things:
        timer = threading.Timer(0.05, ready.set)
        timer.start()
        next(things)
        timer.join()
    assert 0.01 < things.waited_s < 5
