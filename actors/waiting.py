"""Waiting for workers: never without a deadline, and what went wrong there is said here in one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError


def gather(calls: Sequence[ray.ObjectRef], *, timeout_s: float, doing: str, failure: type[Exception]) -> list[Any]:
    """Results of all calls, in order.

    Args:
        doing: what the workers were asked, for the message: "play 8 tasks".
        failure: raised, with the cause, if a call fails, its worker dies, or the deadline passes.
    """
    try:
        return ray.get(list(calls), timeout=timeout_s)
    except GetTimeoutError as error:
        raise failure(f"could not {doing}: no answer within {timeout_s:.0f} s") from error
    except RayTaskError as error:
        raise failure(f"could not {doing}: {type(error.cause).__name__}: {error.cause}") from error
    except RayActorError as error:
        raise failure(f"could not {doing}: a worker died: {first_line(error)}") from error
    except RayError as error:
        raise failure(f"could not {doing}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """The first line of an error's text; Ray's go on for pages."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
