"""A pytest plug-in: one Ctrl-C or SIGTERM ends the suite with its fixtures torn down, so that no engine outlives it."""

import signal
import threading
import time
from contextlib import suppress

import psutil
import pytest

from tests.calibration import within

SIGNALS = (signal.SIGINT, signal.SIGTERM)
TEAR_DOWN_S = 60.0  # for a worker's fixtures on an idle machine


class StopSignals:
    """Interrupts the test that runs; where it swallows that, the suite ends after it."""

    def __init__(self):
        self._session = None

    def pytest_sessionstart(self, session):
        """From the start, whatever was inherited: what is started in the background ignores SIGINT."""
        self._session = session
        self._listen()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self):
        """Worker processes of `pytest -n` are told, and waited for: they have fixtures of their own to tear down."""
        distributed = self._session.config.pluginmanager.getplugin("dsession")
        if not self._session.shouldstop or distributed is None:
            return
        distributed._max_worker_restart = 0  # a worker that ends is not replaced
        for worker in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                worker.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + within(TEAR_DOWN_S)
        while distributed._active_nodes and time.monotonic() < deadline:  # each ends its session, and says so
            distributed.loop_once()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self):
        """And after the fixtures of each test: `ray.init` puts a handler of its own in place, which fails one test."""
        self._listen()

    def _listen(self):
        if threading.current_thread() is threading.main_thread() and not self._session.shouldstop:
            for signum in SIGNALS:
                signal.signal(signum, self._stop)

    def _stop(self, signum, _frame):
        for ignored in SIGNALS:
            signal.signal(ignored, signal.SIG_IGN)  # another one would cut the tear-down short
        self._session.shouldstop = f"stopped by {signal.Signals(signum).name}"
        raise KeyboardInterrupt(self._session.shouldstop)  # what has failed so far is still reported


def pytest_configure(config):
    config.pluginmanager.register(StopSignals())
