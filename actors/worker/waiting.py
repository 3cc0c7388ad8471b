"""Waiting for Ray calls, always with a deadline, and what went wrong in them in one line."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from actors.worker.completion_queue import CompletionQueue
from actors.worker.process import WorkerProcess
from rl.trajectory import WorkerFailure

log = logging.getLogger(__name__)

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
CASCADE_S = 2.0  # to hear of the death that made other workers' calls fail

Asked = TypeVar("Asked")


class WorkerError(RuntimeError):
    """A worker failed or did not answer in time; `failure` says which and where, if that is known."""

    def __init__(self, message: str, failure: WorkerFailure | None = None) -> None:
        super().__init__(message)
        self.failure = failure


def do_nothing() -> None:
    """The default `poll`: there are no other workers to check."""


def gather(
    calls: Sequence[ray.ObjectRef],
    *,
    timeout_s: float,
    doing: str,
    failure: type[WorkerError],
    processes: Sequence[WorkerProcess] = (),
    poll: Callable[[], None] = do_nothing,
    poll_every_s: float = POLL_S,
) -> list[Any]:
    """Results of all calls, in order.

    Args:
        doing: what the workers were asked, for the message: "play 8 tasks".
        failure: raised, with the cause, as soon as a call fails or its worker dies, or when the deadline passes.
        processes: of the calls' workers, in the same order: the one that fails is logged with the end of its log.
        poll: called every `poll_every_s` while no call has finished, to check other workers; must not block.
    """
    waiting, results, deadline = list(calls), {}, time.monotonic() + timeout_s
    while waiting:
        ready, waiting = ray.wait(waiting, timeout=min(poll_every_s, max(deadline - time.monotonic(), 0.0)))
        for call in ready:
            try:
                results[call] = ray.get(call, timeout=COLLECT_S)
            except RayError as error:  # one failure fails all
                failed, cause = _first_cause(call, error, waiting)
                raise _failed(calls, failed, f"could not {doing}: {cause}", failure, processes, error) from error
        if not ready and time.monotonic() >= deadline:
            message = f"could not {doing}: no answer within {timeout_s:.0f} s"
            raise _failed(calls, waiting[0], message, failure, processes, None)
        if not ready:
            poll()
    return [results[call] for call in calls]


def as_completed(calls: Mapping[ray.ObjectRef, Asked], timeout_s: float) -> Iterator[tuple[Asked, Callable[[], Any]]]:
    """Calls in the order in which they finish: the worker asked, and a function that returns the result or raises.

    A death is seen at once, however long the others take. The function of a call that is not done within `timeout_s`
    raises TimeoutError.
    """
    waiting, arrived, deadline = dict(calls), CompletionQueue(), time.monotonic() + timeout_s
    for reference in calls:
        arrived.add(reference, reference)
    while waiting:
        ready = arrived.take(max(deadline - time.monotonic(), 0.0))
        for reference, result in ready:
            yield waiting.pop(reference), result
        if not ready:
            for asked in waiting.values():
                yield asked, _raise_timeout
            return


def cause_of(error: Exception) -> str:
    """What went wrong in a call, in one line."""
    if isinstance(error, RayTaskError):
        return f"{type(error.cause).__name__}: {error.cause}"
    return first_line(error)


def _cause(error: RayError) -> str:
    return f"a worker died: {first_line(error)}" if _is_death(error) else cause_of(error)


def _is_death(error: RayError) -> bool:
    """The called worker itself died; a RayTaskError may only tell of another worker's death."""
    return isinstance(error, WORKER_IS_GONE) and not isinstance(error, RayTaskError)


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


def _first_cause(call: ray.ObjectRef, error: RayError, waiting: Sequence[ray.ObjectRef]) -> tuple[ray.ObjectRef, str]:
    """The call to blame, and why it failed: a worker that died, if the others fail for its sake."""
    if _is_death(error) or not waiting:
        return call, _cause(error)
    ready, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=CASCADE_S)
    for other in ready:
        try:
            ray.get(other, timeout=COLLECT_S)
        except RayError as its_error:
            if _is_death(its_error):
                return other, _cause(its_error)
    return call, _cause(error)


def _failed(
    calls: Sequence[ray.ObjectRef],
    call: ray.ObjectRef,
    message: str,
    failure: type[WorkerError],
    processes: Sequence[WorkerProcess],
    error: RayError | None,
) -> WorkerError:
    if not processes:
        return failure(message)
    where = processes[list(calls).index(call)].failure(error)
    log.error("%s", where)
    return failure(message, where)


def _raise_timeout() -> None:
    raise TimeoutError("no answer within the deadline")
