"""Names of rewards -> functions: a literal table, looked up late, refusing clearly.

A sampling reward is `fn(task, call, **args) -> float | None`, called once per granted retrieval call; a reasoning
reward is `fn(task, trajectory, **args) -> float | None`. None means "does not apply to this task". Either may be async;
`fn(tasks, calls)` and `fn(tasks, trajectories)` score all of a group at once and return as many values.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rewards.forms import BATCHED, code_of
from rl.user_code.errors import UserCodeError, message
from rl.user_code.loading import defined_in, load_object, nearest
from rl.user_code.reference import SUFFIX, parse_reference

RewardFn = Callable[..., float | None]

BUILTIN = {
    "temporal_iou": "rewards.temporal_iou:temporal_iou",
    "frame_rate": "rewards.frame_rate:frame_rate",
    "frame_cost": "rewards.frame_cost:frame_cost",
    "zoom_region": "rewards.zoom_region:zoom_region",
    "answer": "rewards.answer:answer",
    "output_format": "rewards.output_format:output_format",
    "judge": "rewards.judge:judge",
}
ADDS_UP = frozenset({"frame_cost"})  # built in: what several calls score is their sum, unless the term says otherwise
OF_TOOL = {  # built in: the tool whose calls a term scores, unless it says otherwise; others score every tool's
    "temporal_iou": "span_fps",
    "frame_rate": "span_fps",
    "zoom_region": "zoom",
}
SCORED = {"sampling": "call", "reasoning": "trajectory"}  # segment -> what a reward of it is given, after the task
REFUSED = (  # kinds of functions that return something other than a number
    (inspect.isasyncgenfunction, "an async generator"),
    (inspect.isgeneratorfunction, "a generator: it yields where a reward returns"),
)


class RewardLoadError(UserCodeError):
    """A reward cannot be loaded; the message says which, why, and what would work."""


def resolve(name: str, args: Mapping[str, Any] | None = None, *, segment: str | None = None) -> RewardFn:
    """Find a reward by built-in name, "package.module:function" or "path/file.py:function", and bind its arguments.

    Args:
        args: keyword arguments from the configuration; checked against the signature now, not at the first trajectory.
        segment: "sampling" or "reasoning"; a function written for the other one is refused.
    Raises:
        RewardLoadError: no such reward, file, module or function; it cannot be imported; it does not take these
            arguments; it scores the other segment.
    """
    reference = parse_reference(BUILTIN.get(name, name))
    if reference is None:
        raise RewardLoadError(
            f"unknown reward {name!r}{nearest(name, BUILTIN)}; built in: {', '.join(sorted(BUILTIN))}; "
            f"your own: 'package.module:function' or 'path/file.py:function'{_meant_file(name)}"
        )
    try:
        function = load_object(f"reward {name!r}", reference, "function")
    except UserCodeError as error:
        raise RewardLoadError(str(error)) from error
    try:
        _refuse_what_is_no_reward(name, function)
        _check_signature(name, function, args or {}, segment)
    except RewardLoadError:
        raise
    except Exception as error:  # an object of a user's may fail at anything that is asked of it
        raise RewardLoadError(f"reward {name!r} cannot be looked at: {message(error)}") from error
    return functools.partial(function, **args) if args else function


def display_name(function: Any) -> str:
    """What a callable is called in a message: partials, instances and methods included."""
    if isinstance(function, functools.partial):
        return f"partial({display_name(function.func)})"
    name = getattr(function, "__qualname__", None) or getattr(function, "__name__", None)
    return name if isinstance(name, str) else type(function).__qualname__


def _meant_file(name: str) -> str:
    """Of a file without its function, or without its suffix: which it has."""
    source = name.strip().removesuffix(":")
    if not source.endswith(SUFFIX) and Path(source + SUFFIX).expanduser().is_file():
        source += SUFFIX
    if not source.endswith(SUFFIX):
        return ""
    functions = defined_in(Path(source).expanduser())
    return f"; which function of it? {', '.join(f'{source}:{function}' for function in functions[:8])}"[:500]


def _refuse_what_is_no_reward(name: str, function: Any) -> None:
    if not callable(function):
        raise RewardLoadError(f"reward {name!r}: no function {name.rpartition(':')[2]!r}: it is {_kind(function)}")
    if isinstance(function, type):
        raise RewardLoadError(f"reward {name!r} is a class; name an instance of it that can be called, or a function")
    for is_it, kind in REFUSED:
        if is_it(code_of(function)):
            raise RewardLoadError(f"reward {name!r} is {kind}; a reward returns a number, or is awaited for one")


def _kind(value: Any) -> str:
    return f"of type {type(value).__qualname__}, which cannot be called"


def _check_signature(name: str, function: Callable, args: Mapping[str, Any], segment: str | None) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions written in C do not tell theirs
        return
    parameters = list(signature.parameters.values())
    keywords = _keywords(parameters)
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for key in args:
            if key not in keywords:
                accepted = f"it takes {', '.join(keywords)}" if keywords else "it takes none"
                raise RewardLoadError(f"reward {name!r}: no argument {key!r}{nearest(key, keywords)}; {accepted}")
    try:
        signature.bind("task", "call or trajectory", **args)
    except TypeError as error:
        raise RewardLoadError(
            f"reward {name!r}: {display_name(function)}{signature} cannot be called as fn(task, call or trajectory"
            f"{''.join(f', {key}=…' for key in args)}): {error}"
        ) from error
    _check_segment(name, parameters, segment)


def _keywords(parameters: list[inspect.Parameter]) -> list[str]:
    """Arguments beside the two that every reward is given in order."""
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    given = {p.name for p in positional[:2]}
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in given]


def _check_segment(name: str, parameters: list[inspect.Parameter], segment: str | None) -> None:
    """A second parameter named `call` or `trajectory` says which segment the function was written for."""
    if segment is None or len(parameters) < 2:
        return
    written_for = ({scored: seg for seg, scored in SCORED.items()} | BATCHED).get(parameters[1].name, segment)
    if written_for != segment:
        scored = parameters[1].name if parameters[1].name in BATCHED else f"a {parameters[1].name}"
        raise RewardLoadError(f"reward {name!r} scores {scored}: its segment must be {written_for!r}, not {segment!r}")
