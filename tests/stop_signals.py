"""A pytest plug-in: one Ctrl-C or SIGTERM ends the suite with its fixtures torn down, so that no engine outlives it."""

import signal
import threading

import pytest


def pytest_configure():
    """Both signals, whatever was inherited: what is started in the background ignores SIGINT."""
    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, _stop)


def _stop(signum, _frame):
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)  # another one would cut the tear-down short
    pytest.exit(f"stopped by {signal.Signals(signum).name}", returncode=128 + signum)
