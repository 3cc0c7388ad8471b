"""How busy this machine is just now, and what that makes of a deadline.

Tests name the seconds that an idle machine would need with room to spare; `within` multiplies them where processes
outnumber cores, so that a neighbour's work is never taken for a hang.
"""

import os
import time

SPIN_S = 0.02  # of processor time: one measurement


def slowness() -> float:
    """1 on an idle machine; else how many times longer work takes: processes per core, or wall over processor time."""
    started, used = time.perf_counter(), time.thread_time()
    while time.thread_time() - used < SPIN_S:
        pass
    waited = (time.perf_counter() - started) / (time.thread_time() - used)
    return max(1.0, waited, os.getloadavg()[0] / len(os.sched_getaffinity(0)))


def within(seconds: float) -> float:
    """The deadline, in seconds of this machine, of what takes less than `seconds` on an idle one."""
    return seconds * slowness()
