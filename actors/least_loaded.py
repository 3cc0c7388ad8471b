"""Which rollout worker gets the next group: found without looking through all of them for every group."""

from __future__ import annotations

import heapq

from actors.rollout_group import RolloutWorkerGroup
from actors.worker_slot import WorkerSlot

Load = tuple[int, int, int]  # groups in flight, minus the slot's consecutive losses, the slot's index


class LeastLoaded:
    """Slots whose worker holds the current weights, the one with the fewest groups first."""

    def __init__(self, workers: RolloutWorkerGroup) -> None:
        self._workers, self._heap, self._seen_changes = workers, [], -1

    def first(self, max_in_flight: int) -> WorkerSlot | None:
        """The slot with the fewest groups; None: none is ready, or each has `max_in_flight`."""
        slots, heap = self._workers.slots, self._heap
        if self._seen_changes != self._workers.changes or len(heap) > 4 * len(slots):
            self._seen_changes = self._workers.changes
            heap[:] = [_load(slot) for slot in slots]
            heapq.heapify(heap)
        while heap:
            slot = slots[heap[0][-1]]
            if heap[0] == _load(slot) and self._workers.is_ready(slot):
                return slot if slot.worker.in_flight < max_in_flight else None
            heapq.heappop(heap)  # as it was before
        return None

    def add(self, slot: WorkerSlot) -> None:
        """The slot's load has changed."""
        heapq.heappush(self._heap, _load(slot))


def _load(slot: WorkerSlot) -> Load:
    return slot.worker.in_flight, -slot.consecutive_losses, slot.index  # a replacement shows early whether it works
