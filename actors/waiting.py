"""Waiting for Ray calls, always with a deadline, and what went wrong in them in one line."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

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
MAX_CHARS = 1000  # of a message
POLL_S = 1.0  # between two checks of other workers while the driver waits for some
WORKER_IS_GONE = (  # raised by a call whose worker died; killed by Ray's memory monitor, it is no RayActorError
    RayActorError,
    OutOfMemoryError,
    WorkerCrashedError,
    NodeDiedError,
    LocalRayletDiedError,
)
COLLECT_S = 60.0  # to get a result that is ready

Asked = TypeVar("Asked")


def do_nothing() -> None:
    """The default `poll`: there are no other workers to check."""


def gather(
    calls: Sequence[ray.ObjectRef],
    *,
    timeout_s: float,
    doing: str,
    failure: type[Exception],
    poll: Callable[[], None] = do_nothing,
) -> list[Any]:
    """Results of all calls, in order.

    Args:
        doing: what the workers were asked, for the message: "play 8 tasks".
        failure: raised, with the cause, as soon as a call fails or its worker dies, or when the deadline passes.
        poll: called about once a second while no call has finished, to check other workers; must not block.
    """
    waiting, results, deadline = list(calls), {}, time.monotonic() + timeout_s
    try:
        while waiting:
            ready, waiting = ray.wait(waiting, timeout=min(POLL_S, max(deadline - time.monotonic(), 0.0)))
            if ready:
                results |= zip(ready, ray.get(ready, timeout=COLLECT_S), strict=True)  # one failure fails all
            elif time.monotonic() >= deadline:
                raise GetTimeoutError
            else:
                poll()
        return [results[call] for call in calls]
    except GetTimeoutError as error:
        raise failure(f"could not {doing}: no answer within {timeout_s:.0f} s") from error
    except RayTaskError as error:
        raise failure(f"could not {doing}: {cause_of(error)}") from error
    except WORKER_IS_GONE as error:
        raise failure(f"could not {doing}: a worker died: {first_line(error)}") from error
    except RayError as error:
        raise failure(f"could not {doing}: {first_line(error)}") from error


def as_completed(calls: Mapping[ray.ObjectRef, Asked], timeout_s: float) -> Iterator[tuple[Asked, Callable[[], Any]]]:
    """Calls in the order in which they finish: whom each was sent to, and a function that returns its result or raises.

    A death is seen at once, however long the others take. The function of a call that is not done within `timeout_s`
    raises TimeoutError.
    """
    waiting, deadline = dict(calls), time.monotonic() + timeout_s
    while waiting:
        ready, _ = ray.wait(list(waiting), timeout=max(deadline - time.monotonic(), 0.0))
        for reference in ready:
            yield waiting.pop(reference), partial(ray.get, reference, timeout=COLLECT_S)
        if not ready:
            for asked in waiting.values():
                yield asked, _raise_timeout
            return


def cause_of(error: Exception) -> str:
    """What went wrong in a call, in one line."""
    if isinstance(error, RayTaskError):
        return f"{type(error.cause).__name__}: {error.cause}"
    return first_line(error)


def first_line(error: Exception) -> str:
    """The line of an error's text that says what happened; Ray's texts go on for pages.

    The first line, unless an actor died in its own `__init__`: there Ray shows the traceback, and the exception follows
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
    return " ".join(line.strip() for line in raised)[:MAX_CHARS]


def _raise_timeout() -> None:
    raise TimeoutError("no answer within the deadline")
