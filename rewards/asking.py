"""A reward function asked for everything that a group has for it: one by one, side by side, or all at once.

Legend: G siblings of one task · C calls of a sibling, or its one trajectory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rewards.background_loop import BackgroundLoop, Raised
from rewards.failures import await_reward, call_reward
from rewards.forms import is_async, is_batched
from rewards.limits import Guard
from rl.trajectory import GrantedCall, Trajectory, VideoTask
from rl.user_code.errors import is_from_signal

Scored = GrantedCall | Trajectory
Read = Callable[[Any], Any]  # what a function has returned, checked; raises where it is unusable

_LOOP = BackgroundLoop()


class UnusableError(Exception):
    """A function has returned what is no score."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause


def ask(
    fn: Callable[..., Any], task: VideoTask, scored_GC: Sequence[Sequence[Scored]], guard: Guard, read: Read
) -> list[list[Any] | Raised]:
    """What `fn` makes of each call or trajectory, by sibling; Raised where anything of a sibling has failed.

    A plain function is called for one after the other, each under the guard, and not again for a sibling that has
    failed. Those of an async one are awaited side by side, those of a batched one come from a single call: under the
    guard once, so that `scoring.timeout_s` bounds all of them together.
    """
    if is_batched(fn):
        return _by_sibling(scored_GC, _together(fn, task, [one for own in scored_GC for one in own], guard, read))
    if is_async(fn):
        calls = [partial(_awaited, read, await_reward, fn, task, one) for own in scored_GC for one in own]
        return _by_sibling(scored_GC, _LOOP.run(calls, guard))
    return [_one_by_one(fn, task, own, guard, read) for own in scored_GC]


def _one_by_one(
    fn: Callable[..., Any], task: VideoTask, scored_C: Sequence[Scored], guard: Guard, read: Read
) -> list[Any] | Raised:
    values = []
    for scored in scored_C:
        try:
            with guard():
                values.append(read(call_reward(fn, task, scored)))
        except BaseException as error:  # a reward that calls sys.exit ends its call, not its worker
            if is_from_signal(error):
                raise
            return Raised(error)
    return values


def _together(fn: Callable[..., Any], task: VideoTask, scored: Sequence[Scored], guard: Guard, read: Read) -> list[Any]:
    if not scored:
        return []
    every, arguments = partial(_read_every, read, len(scored)), ([task] * len(scored), list(scored))
    if is_async(fn):
        (outcome,) = _LOOP.run([partial(_awaited, every, await_reward, fn, *arguments)], guard)
    else:
        outcome = _one_by_one(lambda *_: call_reward(fn, *arguments), task, scored[:1], guard, every)
        outcome = outcome if isinstance(outcome, Raised) else outcome[0]
    return [outcome] * len(scored) if isinstance(outcome, Raised) else outcome


async def _awaited(read: Read, *called: Any) -> Any:
    function, *arguments = called
    return read(await function(*arguments))


def _read_every(read: Read, count: int, values: Any) -> list[Any]:
    """
    Raises:
        UnusableError: not as many values as it was asked for.
    """
    try:
        found = None if isinstance(values, str | bytes | dict) else list(values)
    except TypeError:
        found = None
    if found is None or len(found) != count:
        returned = type(values).__name__ if found is None else f"{len(found)} values"
        raise UnusableError("not_a_number", f"returned {returned} for {count} calls or trajectories")
    return [read(value) for value in found]


def _by_sibling(scored_GC: Sequence[Sequence[Scored]], outcomes: Sequence[Any]) -> list[list[Any] | Raised]:
    left = iter(outcomes)
    own_G = [[next(left) for _ in own] for own in scored_GC]
    return [next((one for one in own if isinstance(one, Raised)), own) for own in own_G]
