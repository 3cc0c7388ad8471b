"""The engines of a run put to sleep and woken, all of them together."""

from __future__ import annotations

from enum import StrEnum

import ray
from ray.exceptions import RayError

from actors.rollout_group import RolloutWorkerGroup
from actors.worker.waiting import POLL_S, as_completed, cause_of

TURN_S = 300.0  # for an engine to give its GPU's memory up, or to take it back


class EngineMemory(StrEnum):
    """What a sleeping engine has given up; the words are vLLM's."""

    WEIGHTS = "weights"
    KV_CACHE = "kv_cache"


class SleepingEngines:
    """Puts them to sleep, and wakes them; one that does not do as it is told is replaced."""

    def __init__(self, workers: RolloutWorkerGroup, *, drops_weights: bool) -> None:
        """
        Args:
            drops_weights: those that sleep keep none, so that the next push has to bring them all.
        """
        self._workers, self._drops_weights = workers, drops_weights

    def sleep(self) -> None:
        """Have every engine give its GPU's memory up. One that is starting is waited for: it could not be told."""
        workers = self._workers
        while starting := [slot.worker.started for slot in workers.slots if slot.worker.location is None]:
            ray.wait(starting, timeout=POLL_S)
            workers.poll()  # a start has its deadline there
        self._tell("sleep", self._drops_weights)
        if self._drops_weights:
            workers.forget_weights()

    def wake(self, memory: EngineMemory) -> None:
        """Have every engine take a part of its memory back."""
        self._tell("wake", str(memory))

    def supply_weights(self) -> None:
        """Give the weights that were pushed last to engines that have none of them, where no push follows."""
        self._workers.sync_new_workers()

    def _tell(self, method: str, argument: str | bool) -> None:
        awake = [slot for slot in self._workers.slots if slot.worker.location]
        calls = {getattr(slot.worker.actor, method).remote(argument): slot for slot in awake}
        for slot, result in as_completed(calls, TURN_S):
            try:
                result()
            except (RayError, TimeoutError) as error:
                cause = f"told to {method}: {cause_of(error)}"
                self._workers.replace_worker(slot, "worker_died", cause, error)
