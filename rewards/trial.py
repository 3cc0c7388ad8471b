"""Rewards tried on golden trajectories in a process of their own, which they may hang or end: both ends of the pipe.

The parent starts a Python with a socket. The child loads one term after the other and calls each on a golden
group of every kind of answer; it says what it is about to do, so that the parent knows the term, and what it was
doing, when the child goes silent or ends. The parent then starts another for the terms that are left.

| who waits | for what | how long | who frees it |
|---|---|---|---|
| the parent | a child that starts | START_S | it is killed |
| the parent | a load or a call | `timeout_s` (an alarm in the child), and GRACE_S | it is killed |
| the child | its parent | – | the pipe ends with the parent, and the child with it |
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rewards.failures import cause_line
from rewards.golden import golden_group
from rewards.limits import Guard, deadline, limits
from rewards.registry import RewardLoadError, resolve
from rewards.scoring import WeightedReward, score_group
from rl.trajectory import AnswerKind, RewardFailure, Segment

START_S = 60.0  # to start a process; its imports take a tenth of a second
GRACE_S = 5.0  # beyond a deadline, for a term that does not react to its alarm
END_S = 5.0  # for a killed process to be gone
PROJECT = Path(__file__).parents[1]
CHILD = "import sys; from rewards.trial import main; main(int(sys.argv[1]))"
ADVICE = {  # by cause of a failure
    "not_a_number": "; a reward returns one number, or None where it does not apply",
    "not_finite": "; a reward returns a finite number",
    "timeout": "; scoring.timeout_s bounds one call",
    "memory": "; scoring.memory_mib bounds what a reward may take beyond what it holds once it is loaded",
}
LOADING, CALLED = "while it was loaded", "while it was called"


@dataclass(frozen=True, slots=True)
class DeclaredReward:
    """A term as a configuration declares it."""

    fn: str
    segment: str  # sampling | reasoning
    args: Mapping[str, Any]
    tool: str = ""  # whose calls a sampling term scores


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of one term."""

    values: Mapping[str, tuple[float, ...]]  # by kind of answer, of the siblings that it applies to
    problem: str = ""  # why it cannot be used; empty: it can


def try_rewards(
    terms: Mapping[str, DeclaredReward], *, calls: str, timeout_s: float, memory_mib: int
) -> dict[str, Trial]:
    """Load every term and call it on golden trajectories; one that hangs or ends its process costs no other.

    Args:
        calls: as in the section `scoring`, like `timeout_s` and `memory_mib`.
    """
    found: dict[str, Trial] = {}
    while left := {name: term for name, term in terms.items() if name not in found}:
        with _child((left, calls, timeout_s, memory_mib)) as (process, pipe):
            found |= _answers(left, process, pipe, timeout_s)
    return found


def _answers(
    terms: Mapping[str, DeclaredReward], process: subprocess.Popen, pipe: Connection, timeout_s: float
) -> dict[str, Trial]:
    """The trials that a child has made: of all terms, or up to the one that it did not survive."""
    found: dict[str, Trial] = {}
    for name, term in terms.items():
        doing, wait_s = LOADING, START_S + timeout_s + GRACE_S
        while name not in found:
            try:
                answer = pipe.recv() if pipe.poll(wait_s) else None
            except (EOFError, OSError):
                ending = _ending(process)
                return found | {name: Trial({}, f"reward {term.fn!r} has ended its process {doing} ({ending})")}
            if answer is None:
                late = f"no result within {timeout_s:g} s (scoring.timeout_s) {doing}, and no reaction to the deadline"
                return found | {name: Trial({}, f"reward {term.fn!r}: {late}; its process was killed")}
            if isinstance(answer, Trial):
                found[name] = answer
            else:
                doing, wait_s = answer, timeout_s + GRACE_S
    return found


@contextmanager
def _child(request: tuple[Any, ...]) -> Iterator[tuple[subprocess.Popen, Connection]]:
    """A process that works on a request; killed afterwards, with whatever its terms have started."""
    ours, theirs = socket.socketpair()
    search_path = os.pathsep.join([str(PROJECT), *filter(None, sys.path)])
    with theirs, Connection(ours.detach()) as pipe:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", CHILD, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=2,  # what terms print is no output of the command
            env={**os.environ, "PYTHONPATH": search_path},
            start_new_session=True,
        )
        theirs.close()  # or the pipe would not end with the child
        try:
            with suppress(OSError):  # it has ended already: its answer will tell
                pipe.send(request)
            yield process, pipe
        finally:
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_S)


def _ending(process: subprocess.Popen) -> str:
    """How a process ended by itself."""
    try:
        code = process.wait(END_S)
    except subprocess.TimeoutExpired:
        return "its pipe was closed"
    return f"by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}; os._exit?"


def main(pipe_fd: int) -> None:
    """Child's end: try one term after the other, and end."""
    os.set_inheritable(pipe_fd, False)  # a process that a term starts must not hold it open
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's to handle
    pipe = Connection(pipe_fd)
    terms, calls, timeout_s, memory_mib = pipe.recv()
    threading.Thread(target=_end_with_parent, args=(pipe,), daemon=True).start()
    for name, term in terms.items():
        pipe.send(LOADING)
        try:
            with deadline(timeout_s)():
                fn = resolve(term.fn, term.args, segment=term.segment)
        except (RewardLoadError, TimeoutError) as error:
            pipe.send(Trial({}, str(error)))
            continue
        told = _told(pipe, _given_up_once_late(limits(timeout_s, memory_mib), timeout_s))
        pipe.send(_trial(WeightedReward(name, fn, Segment[term.segment.upper()], tool=term.tool), term.fn, calls, told))
    os._exit(0)  # without the clean-up, and the threads, of what was loaded


def _end_with_parent(pipe: Connection) -> None:
    with suppress(EOFError, OSError):
        pipe.recv()
    os._exit(1)


def _trial(reward: WeightedReward, fn: str, calls: str, guard: Guard) -> Trial:
    """It works if it gives numbers for some kind of answer and fails for none; None says that a kind is not its own."""
    found: dict[str, tuple[float, ...]] = {}
    for kind in AnswerKind:
        scored = score_group(golden_group(kind, reward.tool), [reward], calls=calls, guard=guard)
        failures = [v for v in scored.rewards_G if isinstance(v, RewardFailure) and v.term == reward.name]
        if failures:
            return Trial({}, f"{cause_line(failures[0])}{ADVICE.get(failures[0].cause, '')}")
        breakdowns = [own.breakdown for own in scored.rewards_G if not isinstance(own, RewardFailure)]
        if values := tuple(breakdown[reward.name] for breakdown in breakdowns if reward.name in breakdown):
            found[kind.value] = values
    return Trial(found, "" if found else f"{fn} returns None on every golden trajectory")


def _told(pipe: Connection, guard: Guard) -> Guard:
    """The guard, of which the parent is told whenever a call begins."""

    @contextmanager
    def telling() -> Iterator[None]:
        pipe.send(CALLED)
        with guard():
            yield

    return telling


def _given_up_once_late(guard: Guard, timeout_s: float) -> Guard:
    """The guard, but after one deadline was missed further calls are not waited for."""
    hung = False

    @contextmanager
    def once() -> Iterator[None]:
        nonlocal hung
        if hung:
            raise TimeoutError(f"not called again after a call without a result within {timeout_s:g} s")
        try:
            with guard():
                yield
        except TimeoutError:
            hung = True
            raise

    return once
