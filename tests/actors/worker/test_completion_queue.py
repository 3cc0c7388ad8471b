"""Results as they come: values and errors under their keys, and whoever waits is woken."""

import threading
from concurrent.futures import Future

import pytest

from tests.calibration import within

pytestmark = pytest.mark.ray  # Ray is imported; no cluster is needed


class Call:
    """As an ObjectRef: its future ends when it is told."""

    def __init__(self):
        self._future = Future()
        self.returns, self.raises = self._future.set_result, self._future.set_exception

    def future(self):
        return self._future


@pytest.fixture
def queue():
    from actors.worker.completion_queue import CompletionQueue

    return CompletionQueue()


def test_results_are_taken_once_in_the_order_in_which_they_came(queue):
    slow, quick, fails = Call(), Call(), Call()
    for key, call in (("slow", slow), ("quick", quick), ("fails", fails)):
        queue.add(key, call)
    assert queue.take() == []
    quick.returns(1)
    fails.raises(ValueError("no"))
    slow.returns(2)
    (first, one), (second, raises), (third, two) = queue.take()
    assert (first, one(), second, third, two()) == ("quick", 1, "fails", "slow", 2)
    with pytest.raises(ValueError, match="no"):
        raises()
    assert queue.take() == []


def test_who_waits_for_several_queues_is_woken_by_a_result_of_any(queue):
    woken, call = threading.Event(), Call()
    queue.wake(woken)
    queue.add("a", call)
    threading.Timer(0.01, call.returns, [1]).start()
    assert woken.wait(within(5)) and [key for key, _ in queue.take()] == ["a"]


def test_a_result_that_comes_is_not_waited_for_to_the_end(queue):
    call = Call()
    queue.add("a", call)
    threading.Timer(0.01, call.returns, [1]).start()
    assert [key for key, _ in queue.take(within(5))] == ["a"]
