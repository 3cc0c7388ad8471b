"""Waiting for workers: never without a deadline, and what went wrong there is said here in one line."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import (
    GetTimeoutError,
    LocalRayletDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

DIED_IN_INIT = "error raised in its creation task"  # Ray's words
LONGEST = 1000  # characters of a message
GLANCE_S = 1.0  # between two looks at the other workers while one waits for some
WORKER_IS_GONE = (  # the answer to a call whose worker died; killed by Ray's memory monitor, it is no RayActorError
    RayActorError,
    OutOfMemoryError,
    WorkerCrashedError,
    NodeDiedError,
    LocalRayletDiedError,
)
COLLECT_S = 60.0  # for an answer that is there to be in this process's hands


def nothing() -> None:
    """There is nobody else to look after."""


def gather(
    calls: Sequence[ray.ObjectRef],
    *,
    timeout_s: float,
    doing: str,
    failure: type[Exception],
    attend: Callable[[], None] = nothing,
) -> list[Any]:
    """Results of all calls, in order.

    Args:
        doing: what the workers were asked, for the message: "play 8 tasks".
        failure: raised, with the cause, as soon as a call fails or its worker dies, or when the deadline passes.
        attend: called about once a second while nothing has happened, to look after other workers; must not wait.
    """
    waiting, answers, deadline = list(calls), {}, time.monotonic() + timeout_s
    try:
        while waiting:
            ready, waiting = ray.wait(waiting, timeout=min(GLANCE_S, max(deadline - time.monotonic(), 0.0)))
            if ready:
                answers |= zip(ready, ray.get(ready, timeout=COLLECT_S), strict=True)  # one that failed fails all
            elif time.monotonic() >= deadline:
                raise GetTimeoutError
            else:
                attend()
        return [answers[call] for call in calls]
    except GetTimeoutError as error:
        raise failure(f"could not {doing}: no answer within {timeout_s:.0f} s") from error
    except RayTaskError as error:
        raise failure(f"could not {doing}: {cause_of(error)}") from error
    except WORKER_IS_GONE as error:
        raise failure(f"could not {doing}: a worker died: {first_line(error)}") from error
    except RayError as error:
        raise failure(f"could not {doing}: {first_line(error)}") from error


def cause_of(error: Exception) -> str:
    """What went wrong in a call, in one line."""
    if isinstance(error, RayTaskError):
        return f"{type(error.cause).__name__}: {error.cause}"
    return first_line(error)


def first_line(error: Exception) -> str:
    """The line of an error's text that says what happened; Ray's go on for pages.

    The first, unless an actor died of its own `__init__`: of that Ray shows the traceback, and what was raised follows
    its last frame (in one or more lines, joined here).
    """
    lines = [line for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if DIED_IN_INIT not in lines[0]:
        return lines[0].strip()
    frames = [index for index, line in enumerate(lines) if line.lstrip().startswith("File ")]
    raised = lines[frames[-1] + 1 :] if frames else lines[-1:]
    while len(raised) > 1 and raised[0][0].isspace():  # the frame's source
        raised = raised[1:]
    return " ".join(line.strip() for line in raised)[:LONGEST]
