"""One writer per run: of several starts one has the lease, and who has lost it knows before it writes again."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from heapq import heappop, heappush
from itertools import count, cycle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.checkpoint.lease.folder import LEASE, FolderLease
from rl.checkpoint.lease.holder import Holder, process_start, this_process
from rl.checkpoint.lease.lease import Lease, LeaseHeldError, LeaseLostError

EVERY_S, STALE_S, LATENCY_S = 5.0, 60.0, 2.0


def holder(name, **fields):
    elsewhere = Holder(name, f"host-{name}", f"boot-{name}", 7, "1", "", "kill 7", 0.0, 0.0)
    return replace(elsewhere, **fields)


def text_of(found, **fields):
    return json.dumps(asdict(replace(found, **fields))).encode()


class Simulation:
    """Programs that run one operation at a time, each at a simulated moment; `now` is everybody's clock."""

    def __init__(self, latencies):
        self.now, self._latencies = 1000.0, cycle(latencies)
        self._waiting, self._order, self._state = [], count(), threading.Condition()
        self._running = 0

    def wait(self, seconds):
        """Called by a program: go on when so much time has passed."""
        due = threading.Event()
        with self._state:
            heappush(self._waiting, (self.now + seconds, next(self._order), due))
            self._running -= 1
            self._state.notify()
        due.wait()

    def latency(self):
        self.wait(next(self._latencies))

    def run(self, *programs):
        threads = [threading.Thread(target=self._run, args=(program,)) for program in programs]
        self._running = len(threads)
        for thread in threads:
            thread.start()
        with self._state:
            while self._state.wait_for(lambda: self._running == 0) and self._waiting:
                self.now, _, due = heappop(self._waiting)
                self._running += 1
                due.set()
        for thread in threads:
            thread.join()

    def _run(self, program):
        self.wait(0.0)
        program()
        with self._state:
            self._running -= 1
            self._state.notify()


class Storage:
    """Answers after a latency. With `settle_s`, a swap is a look and, a moment later, a write: the last writer wins."""

    def __init__(self, simulation, text, settle_s):
        self._simulation, self.text, self.settle_s = simulation, text, settle_s

    def read(self):
        self._simulation.latency()
        return self.text

    def swap(self, expected, new):
        self._simulation.latency()
        if self.text != expected:
            return False
        if self.settle_s:
            self._simulation.latency()
        self.text = new
        return True


class Start:
    """A process that takes the lease and writes every second, if it may; it can be suspended for a while."""

    def __init__(self, name, simulation, storage, writes, at=0.0, suspended=(0.0, 0.0)):
        self.name, self._simulation, self._writes, self._at = name, simulation, writes, at
        self._after, self._suspended_s = suspended
        clock = {"clock": lambda: simulation.now, "sleep": simulation.wait}
        self.lease = Lease(storage, holder(name), every_s=EVERY_S, stale_after_s=STALE_S, **clock)
        self.end = ""

    def __call__(self):
        self._simulation.wait(self._at)
        try:
            self.lease.acquire()
            for second in range(300):
                if second == self._after:
                    self._simulation.wait(self._suspended_s)
                elif second % EVERY_S == 0:
                    self.lease.beat()
                self.lease.check()
                self._writes.append(self.name)
                self._simulation.wait(1.0)
            self.end = "trained"
        except LeaseHeldError:
            self.end = "refused"
        except LeaseLostError:
            self.end = "lost"


moments = st.floats(0.0, 10.0)
latencies = st.lists(st.floats(0.0, LATENCY_S), min_size=7, max_size=31)
abandoned = st.sampled_from(
    [None, b"", b"half a li", text_of(holder("gone")), text_of(holder("gone"), started_s=900.0)]
)


@given(latencies, moments, abandoned, st.sampled_from([0.0, 5.0]))
def test_of_two_starts_one_trains_and_the_other_is_refused(latencies, later, text, settle_s):
    simulation, writes = Simulation(latencies), []
    storage = Storage(simulation, text, settle_s)
    racers = [Start("a", simulation, storage, writes), Start("b", simulation, storage, writes, at=later)]
    simulation.run(*racers)
    assert sorted(racer.end for racer in racers) == ["refused", "trained"]
    assert len(set(writes)) == 1


@given(latencies, st.floats(0.0, 200.0), st.floats(5.0, 250.0), st.sampled_from([0.0, 5.0]))
def test_a_process_that_was_suspended_writes_nothing_after_another_has_taken_over(latencies, asleep_s, at, settle_s):
    simulation, writes = Simulation(latencies), []
    storage = Storage(simulation, None, settle_s)
    sleeper = Start("a", simulation, storage, writes, suspended=(20, asleep_s))
    simulation.run(sleeper, Start("b", simulation, storage, writes, at=at))
    assert "".join(writes).lstrip("a").strip("b") == ""  # a's all come before b's
    assert (sleeper.end == "lost") == ("b" in writes)


class Now:
    """A clock that sleeping moves."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def lease(folder, me, now):
    return Lease(FolderLease(folder), me, every_s=EVERY_S, stale_after_s=STALE_S, clock=now, sleep=now.sleep)


def test_who_is_refused_is_told_by_whom_since_when_and_how_to_stop_it(tmp_path):
    now = Now()
    lease(tmp_path / "run", this_process("Ray job raysubmit_1", "ray job stop raysubmit_1"), now).acquire()
    now.sleep(12.0)
    with pytest.raises(LeaseHeldError) as refusal:
        lease(tmp_path / "run", this_process(), now).acquire()
    said = str(refusal.value)
    assert said.startswith(f"{tmp_path}/run/lease.json: this run is being written by process {os.getpid()} on ")
    assert "(Ray job raysubmit_1), since 1970-01-01 " in said and "last heartbeat 12 s ago" in said
    assert "stop it with `ray job stop raysubmit_1`, or give this run a name of its own (name=…)" in said
    assert len(said.splitlines()) == 1


def ended_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    found = replace(this_process(), process_id=process.pid, process_started=process_start(process.pid) or "")
    process.wait()
    return found


@pytest.mark.parametrize("gone", [ended_process, lambda: replace(this_process(), process_started="another's")])
def test_a_process_of_this_machine_that_has_ended_is_followed_at_once_though_its_number_be_used_again(tmp_path, gone):
    now = Now()
    (tmp_path / LEASE).write_bytes(text_of(gone(), heartbeat_s=now.now))
    lease(tmp_path, this_process(), now).acquire()
    assert now.now == 1000.0


def test_a_process_of_another_machine_is_watched_until_its_lease_is_stale(tmp_path, caplog):
    now = Now()
    (tmp_path / LEASE).write_bytes(text_of(holder("far"), heartbeat_s=now.now))
    lease(tmp_path, this_process(), now).acquire()
    assert now.now == pytest.approx(1000.0 + STALE_S)
    assert "taken over from process 7 on host-far, without a heartbeat for 60 s" in caplog.text


def test_a_lease_that_somebody_has_removed_is_taken_again(tmp_path):
    now = Now()
    mine = lease(tmp_path / "run", this_process(), now)
    mine.acquire()
    (tmp_path / "run" / LEASE).unlink()
    mine.beat()
    assert json.loads((tmp_path / "run" / LEASE).read_text())["beats"] == 1


def test_a_full_disk_costs_no_lease(tmp_path, caplog, monkeypatch):
    now = Now()
    mine = lease(tmp_path, this_process(), now)
    mine.acquire()
    monkeypatch.setattr(FolderLease, "swap", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    for _ in range(3):
        now.sleep(100.0)
        mine.check()
    assert caplog.text.count("no heartbeat could be written") == 1


def test_a_folder_made_for_the_lease_goes_with_it_and_one_with_anything_in_it_stays(tmp_path):
    now = Now()
    for run, left in (("empty", False), ("used", True)):
        mine = lease(tmp_path / run, this_process(), now)
        mine.acquire()
        if left:
            (tmp_path / run / "metrics.jsonl").touch()
        mine.release()
        assert (tmp_path / run).exists() == left
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("abandoned", [None, ended_process])
def test_of_many_starts_at_the_same_moment_one_wins(tmp_path, abandoned):
    for attempt in range(20):
        run, barrier, winners = tmp_path / str(attempt), threading.Barrier(8), []
        if abandoned:
            run.mkdir()
            (run / LEASE).write_bytes(text_of(abandoned()))

        def start(run=run, barrier=barrier, winners=winners):
            mine = Lease(FolderLease(run), this_process())
            barrier.wait()
            try:
                mine.acquire()
                winners.append(mine)
            except LeaseHeldError:
                pass

        starts = [threading.Thread(target=start) for _ in range(8)]
        for thread in starts:
            thread.start()
        for thread in starts:
            thread.join()
        assert len(winners) == 1


WRITER = """
import pathlib, sys, time
from rl.checkpoint.lease.lease import Lease, LeaseHeldError, LeaseLostError
from rl.checkpoint.lease.folder import FolderLease
from rl.checkpoint.lease.holder import this_process
folder = pathlib.Path(sys.argv[1])
try:
    with Lease(FolderLease(folder), this_process(), every_s=0.2, stale_after_s=1.0) as lease:
        while True:
            lease.check()
            with (folder / "written").open("a") as file:
                file.write(sys.argv[2])
            time.sleep(0.01)
except (LeaseHeldError, LeaseLostError) as error:
    raise SystemExit(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def writer(tmp_path):
    started = []

    def start(letter):
        command = [sys.executable, "-c", WRITER, str(tmp_path / "run"), letter]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        return started[-1]

    def written(letter):
        path = tmp_path / "run" / "written"
        while not (path.exists() and letter in path.read_text()):
            assert started[-1].poll() is None
        return path

    yield start, written
    for process in started:
        process.kill()
        process.wait()


def test_a_process_that_is_killed_is_followed_at_once_and_one_that_is_stopped_when_its_heartbeat_is_stale(writer):
    start, written = writer
    first = start("a")
    written("a")
    assert "LeaseHeldError" in start("x").communicate(timeout=60)[1]
    first.kill()
    second = start("b")
    path = written("b")
    second.send_signal(signal.SIGSTOP)
    while time.time() - json.loads((path.parent / LEASE).read_text())["heartbeat_s"] <= 1.0:
        assert second.poll() is None
    start("c")
    written("c")
    second.send_signal(signal.SIGCONT)
    said = second.communicate(timeout=60)[1]
    assert "LeaseLostError" in said and "has taken over this run" in said
    assert path.read_text().rstrip("c").rstrip("b").rstrip("a") == ""
