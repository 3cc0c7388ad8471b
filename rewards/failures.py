"""Why a reward could not be computed: where in the reward's code, and one line a user can act on."""

from __future__ import annotations

import functools
import inspect
import linecache
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rl.trajectory import ErrorLocation, RewardFailure, ScoredGroup
from rl.user_code.errors import INSTALLED, OURS, bounded

SOURCE_CHARS = 160
TRACEBACK_CHARS = 8_000  # both ends are kept
TOOL_ERROR = "tool_error"  # not a reward's own failure, but that of a tool which the policy called
VERBS = {  # by cause
    "raised": "raised",
    "timeout": "timed out:",
    "memory": "ran out of memory:",
    "not_finite": "gave no finite number:",
    "not_a_number": "gave no number:",
    "worker_died": "was lost with its worker:",
    "video_error": "has no clip to score:",
    "no_turns": "has no turns to score:",
    TOOL_ERROR: "failed:",
}
BETWEEN = (str(Path(__file__).with_name("limits.py")), OURS)  # an alarm and imports, amid the reward's own frames


@dataclass(frozen=True, slots=True)
class DistinctFailure:
    """One cause, with the first trajectory it was met on."""

    failure: RewardFailure
    group: int  # index in the step, from 0
    sibling: int  # index in the group, from 0
    count: int  # trajectories that failed for the same cause


def call_reward(fn: Callable[..., Any], *arguments: Any) -> Any:
    """Call a reward; `locate` takes the frames below this one for the reward's."""
    return fn(*arguments)


async def await_reward(fn: Callable[..., Any], *arguments: Any) -> Any:
    """Likewise, of an async one."""
    return await fn(*arguments)


def locate(error: BaseException) -> ErrorLocation | None:
    """Where a reward raised; None if it was not called, or no Python code of its was running.

    The location is the last frame outside the standard library and installed packages, or else the reward function.
    """
    frames = traceback.extract_tb(error.__traceback__)
    called = [i for i, frame in enumerate(frames) if frame.filename == __file__ and frame.name in CALLERS]
    stack = [frame for frame in frames[called[-1] + 1 :] if not frame.filename.startswith(BETWEEN)] if called else []
    if not stack:
        return None
    own = [frame for frame in stack if not frame.filename.startswith((*INSTALLED, "<"))]
    last = own[-1] if own else stack[0]
    told = traceback.TracebackException.from_exception(error)
    told.stack = traceback.StackSummary.from_list(stack)
    return ErrorLocation(
        file=last.filename,
        line=last.lineno or 0,
        function=last.name,
        source=bounded((last.line or "").strip(), SOURCE_CHARS),
        traceback=bounded("".join(told.format()), TRACEBACK_CHARS),
    )


def defined_at(fn: Callable[..., Any]) -> ErrorLocation | None:
    """Where a reward function begins, for a value that is wrong without an exception; None of one written in C."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    try:
        code = getattr(inspect.unwrap(fn), "__code__", None) or getattr(type(fn).__call__, "__code__", None)
    except Exception:  # an object of a user's may fail at anything that is asked of it
        code = None
    if code is None:
        return None
    source = linecache.getline(code.co_filename, code.co_firstlineno).strip()
    return ErrorLocation(code.co_filename, code.co_firstlineno, code.co_name, bounded(source, SOURCE_CHARS), "")


CALLERS = (call_reward.__name__, await_reward.__name__)


def cause_line(failure: RewardFailure) -> str:
    """What failed, on which task and where, on one line.

    reward 'brevity' raised KeyError: 'gold' on task train.jsonl:12 at my_rewards.py:4 in brevity: return row["gold"]
    """
    kind = "tool" if failure.cause == TOOL_ERROR else "reward"
    term = kind if failure.term == "*" else f"{kind} {failure.term!r}"
    on_task = f" on task {failure.task_id}" if failure.task_id else ""
    line = f"{term} {VERBS.get(failure.cause, failure.cause)} {failure.detail}{on_task}"
    if failure.location is None:
        return line
    at = failure.location
    return f"{line} at {at.file}:{at.line} in {at.function}{f': {at.source}' if at.source else ''}"


def distinct_failures(scored: Iterable[ScoredGroup]) -> list[DistinctFailure]:
    """Failures of a step's rewards, each cause once, in order of appearance; clips are envs.clip_failures' business."""
    found: dict[tuple[object, ...], DistinctFailure] = {}
    for group, of_group in enumerate(scored):
        for sibling, failure in enumerate(of_group.rewards_G):
            if isinstance(failure, RewardFailure) and failure.cause != "video_error":
                key = cause_key(failure)
                first = found.get(key, DistinctFailure(failure, group, sibling, 0))
                found[key] = replace(first, count=first.count + 1)
    return list(found.values())


def cause_key(failure: RewardFailure) -> tuple[object, ...]:
    """Equal for failures of one cause: the same line of the same reward. Messages may differ: they often quote data."""
    if failure.location is not None:
        error = failure.detail.partition(":")[0]
        return failure.term, failure.cause, error, failure.location.file, failure.location.line
    return failure.term, failure.cause, failure.detail
