"""Limits on one reward call: time and memory."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import psutil

MIB = 2**20

Guard = Callable[[], AbstractContextManager[Any]]  # surrounds each call of a reward function; may raise TimeoutError


def limits(timeout_s: float, memory_mib: int) -> Guard:
    """A guard for one reward call: a deadline, and MemoryError beyond what this process holds now plus `memory_mib`.

    Args:
        memory_mib: 0: no limit.
    """
    alarm = deadline(timeout_s)
    if not memory_mib:
        return alarm
    limit_bytes = psutil.Process().memory_info().data + memory_mib * MIB

    @contextmanager
    def guard() -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limit = limit_bytes if hard == resource.RLIM_INFINITY else min(limit_bytes, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))  # around the call only: Ray's own threads need theirs
        try:
            with alarm():
                yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))

    return guard


def deadline(seconds: float) -> Guard:
    """A guard for one reward call: SIGALRM raises TimeoutError inside it, so that the term that hangs is named.

    It works in the process's main thread, where signals arrive. Code that never returns to the interpreter ignores the
    alarm: whoever waits for the process needs a deadline too.
    """

    def on_alarm(_signal: int, _frame: Any) -> None:
        raise TimeoutError(f"no result within {seconds:g} s (scoring.timeout_s)")

    @contextmanager
    def guard() -> Iterator[None]:
        signal.signal(signal.SIGALRM, on_alarm)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)

    return guard
