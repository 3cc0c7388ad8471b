"""The deadline of a request that another process works on: counted in processor time, so that a busy machine is not
taken for a slow clip.

| limit | of | who meets it |
|---|---|---|
| `cpu_s` | processor time used by the process | a clip that takes too much decoding |
| `idle_s` | seconds without any use of the processor | a disk or server that does not answer, a process that hangs |
| `cpu_s` times WALL_FACTOR | seconds on the clock | a server that answers in trickles |
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

WALL_FACTOR = 20  # a machine with as many processes per core is still no reason to give up a clip
SOONEST_S = 0.05  # between two looks at a process
IDLE_LOOKS = 4  # at least as many looks in `idle_s`
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """What one request may take."""

    cpu_s: float
    idle_s: float

    @property
    def wall_s(self) -> float:
        """Seconds on the clock."""
        return self.cpu_s * WALL_FACTOR


@dataclass(frozen=True, slots=True)
class Excess:
    """A limit that was passed: what is said of it, and what to do about it."""

    problem: str
    remedy: str


@dataclass(slots=True)
class Usage:
    """What a process has used since a request began, judged each time it is looked at."""

    limits: TimeLimits
    began_s: float
    began_cpu_s: float
    changed_s: float  # when processor time was last seen to grow
    cpu_s: float = 0.0  # of this request

    @classmethod
    def begin(cls, limits: TimeLimits, now_s: float, cpu_s: float) -> Usage:
        """Of a request that begins now."""
        return cls(limits, now_s, cpu_s, now_s)

    def look(self, now_s: float, cpu_s: float) -> Excess | None:
        """Note the clock and the process's processor time; the limit that is passed, if one is."""
        if cpu_s - self.began_cpu_s > self.cpu_s:
            self.cpu_s, self.changed_s = cpu_s - self.began_cpu_s, now_s
        limits, drop = self.limits, "or drop the row"
        if self.cpu_s >= limits.cpu_s:
            problem = f"decoding took more than {limits.cpu_s:g} s of processor time and was killed"
            return Excess(problem, f"raise video.decode_timeout_s {drop}")
        if now_s - self.changed_s >= limits.idle_s:
            problem = f"decoding stood still for {limits.idle_s:g} s, without any processor time, and was killed"
            return Excess(problem, f"check the disk or server it lies on, raise video.decode_stall_timeout_s {drop}")
        if now_s - self.began_s >= limits.wall_s:
            problem = f"decoding did not end within {limits.wall_s:g} s ({self.cpu_s:.1f} s of processor time)"
            return Excess(f"{problem} and was killed", f"check the disk or server it lies on {drop}")
        return None

    def next_look_s(self, now_s: float) -> float:
        """Seconds for which no limit can be passed: one thread uses at most a second of processor time in a second."""
        left_s = (
            self.limits.cpu_s - self.cpu_s,
            self.limits.wall_s - (now_s - self.began_s),
            self.limits.idle_s / IDLE_LOOKS,
        )
        return max(SOONEST_S, min(left_s))


class Deadline:
    """Looks now and then at a process that works on a request, and calls `end` once if it passes a limit."""

    def __init__(self, limits: TimeLimits, pid: int, end: Callable[[], None]) -> None:
        self.excess: Excess | None = None
        self._pid, self._end, self._over = pid, end, threading.Event()
        self._usage = Usage.begin(limits, time.monotonic(), cpu_seconds(pid))
        self._watch = threading.Thread(target=self._look_on, daemon=True)

    def __enter__(self) -> Deadline:
        self._watch.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._over.set()
        self._watch.join()  # an end that comes late must not hit the next request

    def _look_on(self) -> None:
        while not self._over.wait(self._usage.next_look_s(time.monotonic())):
            self.excess = self._usage.look(time.monotonic(), cpu_seconds(self._pid))
            if self.excess is not None:
                self._end()
                return


def cpu_seconds(pid: int) -> float:
    """Processor time a process has used, all its threads, user and system; 0 of one that is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0.0
    fields = stat.rpartition(")")[2].split()  # the name before may hold anything
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S
