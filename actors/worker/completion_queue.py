"""Results of Ray calls in the order in which they come, at a cost per result that does not grow with those awaited.

`ray.wait` looks through all references it is given, every time. Here each reference is looked at once: Ray calls back
when its object is there, from a thread of its own, and who waits is woken.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import ray

Result = Callable[[], Any]  # what the call returned, or raises what it raised


class CompletionQueue:
    """Calls that are awaited, each under a key, and results that have come and were not taken yet."""

    def __init__(self) -> None:
        self._arrived: queue.SimpleQueue[tuple[Any, Result]] = queue.SimpleQueue()
        self._listeners: list[threading.Event] = []

    def add(self, key: Any, call: ray.ObjectRef) -> None:
        """Await a call. Its result should be small: it is unpickled when it arrives."""
        call.future().add_done_callback(partial(self._put, key))

    def take(self, timeout_s: float = 0.0) -> list[tuple[Any, Result]]:
        """All results that have come, with their keys; waits at most `timeout_s` for the first."""
        taken = []
        try:
            taken.append(self._arrived.get(timeout=timeout_s) if timeout_s > 0 else self._arrived.get_nowait())
            while True:
                taken.append(self._arrived.get_nowait())
        except queue.Empty:
            return taken

    def wake(self, listener: threading.Event) -> None:
        """Set `listener` whenever a result comes: for who waits for several queues."""
        self._listeners.append(listener)

    def _put(self, key: Any, done: Future) -> None:
        self._arrived.put((key, done.result))
        for listener in self._listeners:
            listener.set()
