"""Heartbeats of rollout workers, asked for now and then: progress, and references to the turns they have completed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import ray

from actors.rollout import Heartbeat
from actors.worker.completion_queue import CompletionQueue, Result
from actors.worker.waiting import POLL_S
from actors.worker_slot import WorkerSlot

OnTurns = Callable[[int, ray.ObjectRef], None]  # a call, and a reference to NewTurns with turns of it

HEARTBEATS_PER_S = 100  # of all workers together, at most: beyond 500 workers, each is asked less often
HEARTBEATS_PER_TIMEOUT = 36  # of one worker in `stall_timeout_s`; a death is seen at once by the calls that fail


def ignore_turns(_call: int, _turns: ray.ObjectRef) -> None:
    """The default `on_turns`: no groups are in flight."""


class Heartbeats:
    """Those that were requested, and starts of workers that are awaited."""

    def __init__(self, num_workers: int, stall_timeout_s: float) -> None:
        self._every_s = max(POLL_S, stall_timeout_s / HEARTBEATS_PER_TIMEOUT, num_workers / HEARTBEATS_PER_S)
        self.completions = CompletionQueue()  # slot, worker, whether it is a heartbeat
        self.on_turns: OnTurns = ignore_turns

    def await_start(self, slot: WorkerSlot) -> None:
        """The slot has a new worker."""
        self.completions.add((slot, slot.worker, False), slot.worker.started)

    def request(self, slot: WorkerSlot) -> None:
        """Ask for a heartbeat, if it is time and the last one has come."""
        worker, now = slot.worker, time.monotonic()
        if worker.heartbeat is None and now - worker.last_heartbeat_s >= self._every_s:
            worker.heartbeat, worker.new_turns = worker.actor.heartbeat.options(num_returns=2).remote()
            worker.last_heartbeat_s = now
            self.completions.add((slot, worker, True), worker.heartbeat)

    def arrived(self) -> Iterator[tuple[WorkerSlot, Result, bool]]:
        """Of workers that are still there: what has come since the last call, and whether it is a heartbeat."""
        for (slot, worker, is_heartbeat), result in self.completions.take():
            if slot.worker is worker:
                yield slot, result, is_heartbeat

    def read(self, slot: WorkerSlot, result: Result) -> Heartbeat:
        """A heartbeat that has come; its turns are reported.

        Raises:
            RayError: the worker has died.
        """
        worker = slot.worker
        turns, worker.heartbeat, worker.new_turns = worker.new_turns, None, None
        heartbeat: Heartbeat = result()
        worker.stall_detector.update(heartbeat.progress)
        for call in heartbeat.calls:
            self.on_turns(call, turns)
        return heartbeat
