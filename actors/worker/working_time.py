"""When a worker was at work: the times in which at least one piece of work was under way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rl.tracking.lanes import MOST_SPANS, Interval, thinned


class WorkingTime:
    """Pieces of work, from any thread or task; those that overlap count once.

    with working: ...      # any number of them at a time
    working.take()         # [(start, end), …] since the last call, in wall-clock time of this machine
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._under_way, self._since_s = 0, 0.0
        self._intervals: list[Interval] = []

    def __enter__(self) -> Self:
        with self._lock:
            if self._under_way == 0:
                self._since_s = self._clock()
            self._under_way += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._under_way -= 1
            if self._under_way == 0:
                self._close()

    def take(self) -> list[Interval]:
        """What has not been taken yet; what is still under way is cut here and goes on in the next."""
        with self._lock:
            if self._under_way:
                self._close()
            taken, self._intervals = self._intervals, []
        return thinned(taken, MOST_SPANS)

    def _close(self) -> None:
        now = max(self._since_s, self._clock())
        self._intervals.append((self._since_s, now))
        self._since_s = now
        if len(self._intervals) >= 4 * MOST_SPANS:  # nobody takes them, as in an evaluation
            self._intervals = thinned(self._intervals, MOST_SPANS)
