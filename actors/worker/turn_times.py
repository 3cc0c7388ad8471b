"""When a worker had given memory of a GPU up for others that it takes turns with."""

from __future__ import annotations

import time
from collections.abc import Callable

Turn = tuple[str, float, float]  # what was given up, from when to when, in wall-clock time of this machine


class TurnTimes:
    """One thing at a time is given up, or nothing.

    times.gives_up("everything")       # … takes some of it back:
    times.gives_up("all but weights")  # … and the rest:
    times.gives_up("")
    times.take()                       # [("everything", 1.0, 2.5), ("all but weights", 2.5, 3.0)]
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._what, self._since_s = "", 0.0
        self._turns: list[Turn] = []

    def gives_up(self, what: str) -> None:
        """From now on this, instead of what was given up before; empty: nothing."""
        now = self._clock()
        if self._what:
            self._turns.append((self._what, self._since_s, now))
        self._what, self._since_s = what, now

    @property
    def given_up(self) -> str:
        """What is given up now; empty: nothing."""
        return self._what

    def take(self) -> list[Turn]:
        """Those that have ended since the last call."""
        taken, self._turns = self._turns, []
        return taken
