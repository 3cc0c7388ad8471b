"""A pytest plug-in: one Ctrl-C or SIGTERM ends the suite with its fixtures torn down, so that no engine outlives it."""

import signal
import threading

import pytest


def pytest_configure():
    """From the start, whatever was inherited: what is started in the background ignores SIGINT."""
    _listen()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call():
    """And after the fixtures of each test: `ray.init` puts a handler of its own in place, which fails one test only."""
    _listen()


def _listen():
    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, _stop)


def _stop(signum, _frame):
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)  # another one would cut the tear-down short
    pytest.exit(f"stopped by {signal.Signals(signum).name}", returncode=128 + signum)
