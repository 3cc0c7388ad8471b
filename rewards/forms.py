"""In which form a reward function is written: plain or async, for one call or trajectory or for several at once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

BATCHED = {
    "calls": "sampling",
    "trajectories": "reasoning",
}  # names of a second parameter that takes several -> segment


def code_of(function: Any) -> Any:
    """What runs when it is called: of a partial its function, of an instance its class's `__call__`."""
    while isinstance(function, functools.partial):
        function = function.func
    return function if inspect.isroutine(function) else type(function).__call__


def is_async(function: Callable[..., Any]) -> bool:
    """Whether what it returns is awaited."""
    return inspect.iscoroutinefunction(code_of(function))


def is_batched(function: Callable[..., Any]) -> bool:
    """Whether it is `fn(tasks, calls)` or `fn(tasks, trajectories)`, which returns as many values: names tell."""
    try:
        names = [*inspect.signature(function).parameters][:2]
    except (TypeError, ValueError):  # some functions written in C do not tell theirs
        return False
    return len(names) == 2 and names[0] == "tasks" and names[1] in BATCHED
