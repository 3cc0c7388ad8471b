"""Which worker gets the next group: the one with the fewest, among those that hold the current weights."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.ray  # Ray is imported; no cluster is needed


class Workers:
    def __init__(self, count):
        self.slots = [SimpleNamespace(index=i, consecutive_losses=0, worker=Worker()) for i in range(count)]
        self.changes = 0

    def is_ready(self, slot):
        return slot.worker.is_ready


class Worker:
    def __init__(self):
        self.in_flight, self.is_ready = 0, True


def by_looking_through_all(workers, most):
    free = [slot for slot in workers.slots if slot.worker.is_ready and slot.worker.in_flight < most]
    return min(free, key=lambda slot: (slot.worker.in_flight, -slot.consecutive_losses, slot.index), default=None)


@given(st.integers(1, 5), st.lists(st.tuples(st.sampled_from(["send", "end", "lose", "ready"]), st.integers(0, 4))))
def test_it_is_the_one_that_is_found_by_looking_through_all_of_them(count, events):
    from actors.least_loaded import LeastLoaded

    workers = Workers(count)
    free = LeastLoaded(workers)
    for event, number in events:
        slot = workers.slots[number % count]
        match event:
            case "send":
                found = free.first(3)
                assert found is by_looking_through_all(workers, 3)
                if found is not None:
                    found.worker.in_flight += 1
                    free.add(found)
            case "end" if slot.worker.in_flight:
                slot.worker.in_flight -= 1
                free.add(slot)
            case "lose":
                slot.worker.is_ready, slot.worker.in_flight = False, 0
                slot.consecutive_losses += 1
                workers.changes += 1
            case "ready":
                slot.worker.is_ready = True
                workers.changes += 1
    assert free.first(3) is by_looking_through_all(workers, 3)
