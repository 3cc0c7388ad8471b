"""A request has processor time, not time on the clock: a busy machine loses no clip, a dead disk ends nevertheless."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from envs.video.deadline import WALL_FACTOR, Deadline, TimeLimits, Usage, cpu_seconds
from envs.video.decode_process import DecodeProcess
from envs.video.reader import VideoReader, VideoTimeoutError
from tests.calibration import within
from tests.envs.video.clips import render

LIMITS = TimeLimits(cpu_s=10.0, idle_s=30.0)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return str(render(tmp_path_factory.mktemp("clip") / "clip.mp4"))


@pytest.mark.parametrize(
    ("looks", "excess"),
    [  # (seconds on the clock, processor time of the process) at each look
        ([(5.0, 5.0), (9.9, 9.9)], ""),
        ([(10.0, 10.0)], "more than 10 s of processor time"),
        ([(20.0, 2.0), (49.0, 4.0), (78.0, 6.0), (107.0, 8.0), (136.0, 9.9)], ""),  # ten processes on a core
        ([(29.9, 0.0)], ""),  # stopped, or swapped out, for a while
        ([(29.0, 0.0), (31.0, 0.1), (60.0, 0.1)], ""),
        ([(30.0, 0.0)], "stood still for 30 s"),
        ([(5.0, 1.0), (34.9, 1.0)], ""),
        ([(5.0, 1.0), (35.0, 1.0)], "stood still for 30 s"),
        ([(29.0 * n, 0.02 * n) for n in range(1, 7)], ""),  # a server that answers in trickles
        ([(29.0 * n, 0.02 * n) for n in range(1, 8)], r"within 200 s \(0.1 s of processor time\)"),
    ],
)
def test_which_limit_a_process_passes(looks, excess):
    usage = Usage.begin(LIMITS, now_s=1000.0, cpu_s=77.0)  # what earlier requests used does not count
    found = [usage.look(1000.0 + now_s, 77.0 + cpu_s) for now_s, cpu_s in looks]

    assert found[:-1] == [None] * (len(looks) - 1)
    if excess:
        assert re.search(excess, found[-1].problem) and found[-1].remedy
    else:
        assert found[-1] is None


def test_a_process_is_looked_at_only_when_it_may_have_passed_a_limit():
    usage = Usage.begin(TimeLimits(cpu_s=60.0, idle_s=1000.0), now_s=0.0, cpu_s=0.0)
    assert usage.next_look_s(0.0) == 60.0  # one thread needs a second for a second
    usage.look(60.0, 20.0)
    assert usage.next_look_s(60.0) == 40.0
    usage.look(60.0 * (WALL_FACTOR - 0.5), 20.0)
    assert usage.next_look_s(60.0 * (WALL_FACTOR - 0.5)) == 30.0


def test_the_wall_is_far_behind_the_processor_time():
    assert LIMITS.wall_s >= 10 * LIMITS.cpu_s


def test_processor_time_is_that_of_the_process_and_of_one_that_is_gone_none():
    spinning = [sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"]
    with subprocess.Popen(spinning) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, not yet reaped
        used = cpu_seconds(process.pid)
    assert 0.28 <= used < 1.0
    assert cpu_seconds(process.pid) == 0.0


def test_a_process_that_burns_processor_time_is_ended_once_it_has_used_its_own():
    ended = threading.Event()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        with Deadline(
            TimeLimits(cpu_s=0.3, idle_s=60.0), process.pid, lambda: (process.kill(), ended.set())
        ) as deadline:
            assert ended.wait(within(20.0))
        assert "0.3 s of processor time" in deadline.excess.problem
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert cpu_seconds(process.pid) < 0.3 + 1.0


@pytest.mark.thorough
def test_a_process_that_is_starved_for_longer_than_its_deadline_is_not_called_too_slow(clip):
    """As on a machine with ten processes per core: it is stopped most of the time, and goes on now and then."""
    process = DecodeProcess("pyav", frame_cache_bytes=0, timeout_s=0.3)
    process.describe(clip)
    is_over = threading.Event()

    def starve():
        while not is_over.is_set():
            os.kill(process.pid, signal.SIGSTOP)
            is_over.wait(0.45)
            os.kill(process.pid, signal.SIGCONT)
            is_over.wait(0.005)

    starving = threading.Thread(target=starve)
    starving.start()
    began_s = time.monotonic()
    try:
        process.frames(clip, tuple(number / 25 for number in range(100)), (96, 128))
    finally:
        is_over.set()
        starving.join()
    assert time.monotonic() - began_s > 0.4  # longer than it had processor time
    assert not process.replaced
    process.close()


@pytest.mark.thorough
def test_a_clip_that_takes_too_much_decoding_is_refused_by_name_and_the_key_to_raise(clip):
    with VideoReader(workers=1, timeout_s=0.02) as reader:
        with pytest.raises(VideoTimeoutError, match=r"clip\.mp4: .* 0\.02 s of processor time.*decode_timeout_s"):
            reader.frames(clip, tuple(number / 25 for number in range(100)), (1960, 2800))
        assert [fault.kind for fault in reader.take_faults()] == ["decoder_deadline"]


def test_what_a_busy_process_has_done_counts_as_progress(clip):
    with VideoReader(workers=1) as reader:
        assert reader.progress() == 0
        reader.describe(clip)
        before = reader.progress()
        reader.describe(clip)
        assert reader.progress() > before > 0
