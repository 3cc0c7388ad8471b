"""Being asked to stop: SIGTERM (`ray job stop`, a scheduler) and Ctrl-C.

The first signal is a request: a wait for rollouts ends within about a second, a learning step is finished, the run is
saved. A second request, or a grace that runs out, ends the process on the spot; the newest checkpoint stays.

`timeout`, `make` and batch systems signal a process and then its whole group: the same signal again within a second is
the same request.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAME_REQUEST_S = 1.0


class StopRequested(Exception):
    """The run was asked to stop."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum


class Requests:
    """Tells a new request from the echo of the one before."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: tuple[int, float] | None = None  # signal, when

    def is_new(self, signum: int) -> bool:
        """Whether this signal asks for something, or repeats what was asked a moment ago."""
        now, last = self._clock(), self._last
        if last is not None and last[0] == signum and now - last[1] < SAME_REQUEST_S:
            return False
        self._last = signum, now
        return True


class StopSignals:
    """Turns signals into a question that can be asked where it suits: `check`. Main thread only."""

    def __init__(self, grace_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            grace_s: from the first signal until the process ends, whatever it is doing.
        """
        self._grace_s = grace_s
        self._requests = Requests(clock)
        self._signum: int | None = None
        self._before: dict[int, Any] = {}
        self._timer: threading.Timer | None = None

    def __enter__(self) -> StopSignals:
        self._before = {signum: signal.signal(signum, self._receive) for signum in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if self._timer is not None:
            self._timer.cancel()

    def check(self) -> None:
        """
        Raises:
            StopRequested: a signal has come.
        """
        if self._signum is not None:
            raise StopRequested(self._signum)

    def _receive(self, signum: int, _frame: FrameType | None) -> None:
        if not self._requests.is_new(signum):
            return
        if self._signum is not None:
            os._exit(128 + signum)
        self._signum = signum
        name = signal.Signals(signum).name
        log.warning("%s: stopping within %g s; again: at once, from the newest checkpoint", name, self._grace_s)
        self._timer = threading.Timer(self._grace_s, self._give_up)
        self._timer.daemon = True
        self._timer.start()

    def _give_up(self) -> None:
        log.error("not done %g s after the signal (trainer.stop_grace_s): the newest checkpoint stays", self._grace_s)
        os._exit(128 + (self._signum or signal.SIGTERM))


def exit_on_signals() -> None:
    """SIGTERM ends this process with code 143, Ctrl-C as KeyboardInterrupt, whatever handlers were inherited.

    Both are raised, so that workers are released on the way out.
    """
    requests = Requests()

    def receive(signum: int, _frame: FrameType | None) -> None:
        if requests.is_new(signum):
            raise KeyboardInterrupt if signum == signal.SIGINT else SystemExit(128 + signum)

    for signum in SIGNALS:
        signal.signal(signum, receive)
