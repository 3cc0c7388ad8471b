"""Being asked to stop: SIGTERM (`ray job stop`, a scheduler) and Ctrl-C.

The first signal is a request: whoever waits for rollouts notices within about a second, a learning step is finished,
the run is saved. The second one, or a grace that runs out, ends the process on the spot; the newest checkpoint stays.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequested(Exception):
    """The run was asked to stop."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum


class StopSignals:
    """Turns signals into a question that can be asked where it suits: `check`. Main thread only."""

    def __init__(self, grace_s: float) -> None:
        """
        Args:
            grace_s: from the first signal until the process ends, whatever it is doing.
        """
        self._grace_s = grace_s
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
