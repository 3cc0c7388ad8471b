"""Names of rewards -> functions: a literal table, looked up late, refusing clearly.

A sampling reward is `fn(task, call, **args) -> float | None`, called once per well-formed retrieval call; a reasoning
reward is `fn(task, trajectory, **args) -> float | None`. None means "does not apply to this task".
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

RewardFn = Callable[..., float | None]

BUILTIN = {
    "temporal_iou": "rewards.temporal_iou:temporal_iou",
    "frame_rate": "rewards.frame_rate:frame_rate",
    "answer": "rewards.answer:answer",
    "output_format": "rewards.output_format:output_format",
}
SCORED = {"sampling": "call", "reasoning": "trajectory"}  # segment -> what a reward of it is given, after the task


class RewardLoadError(ValueError):
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
    path = BUILTIN.get(name, name)
    module_name, colon, function_name = path.rpartition(":")
    if not colon or not module_name or not function_name:
        raise RewardLoadError(
            f"unknown reward {name!r}{_nearest(name, BUILTIN)}; built in: {', '.join(sorted(BUILTIN))}; "
            "your own: 'package.module:function' or 'path/file.py:function'"
        )
    module = _load_file(name, Path(module_name)) if module_name.endswith(".py") else _load_module(name, module_name)
    function = getattr(module, function_name, None)
    if not callable(function):
        offered = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise RewardLoadError(
            f"reward {name!r}: no function {function_name!r} in {module_name}{_nearest(function_name, offered)}"
        )
    _check_signature(name, function, args or {}, segment)
    return functools.partial(function, **args) if args else function


def _load_module(name: str, module_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except Exception as error:  # whatever a user's module raises while it is imported
        hint = ""
        if isinstance(error, ModuleNotFoundError) and error.name and module_name.split(".")[0] == error.name:
            hint = "; is it installed, or reachable through PYTHONPATH? A file is named as 'path/file.py:function'"
        raise RewardLoadError(f"reward {name!r}: cannot import {module_name}: {_named(error)}{hint}") from error


def _load_file(name: str, path: Path) -> ModuleType:
    file = path.expanduser().resolve()
    if not file.is_file():
        beside = [entry.name for entry in file.parent.glob("*.py")] if file.parent.is_dir() else []
        raise RewardLoadError(f"reward {name!r}: no file {file}{_nearest(file.name, beside)}")
    module_name = f"user_reward_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    if module_name in sys.modules:  # two rewards of one file share its module
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # before execution: dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file raises while it is executed
        del sys.modules[module_name]
        raise RewardLoadError(f"reward {name!r}: cannot load {file}: {_named(error)}") from error
    return module


def _check_signature(name: str, function: Callable, args: Mapping[str, Any], segment: str | None) -> None:
    if inspect.iscoroutinefunction(function):
        raise RewardLoadError(f"reward {name!r} is an async function; rewards are plain functions")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions written in C do not tell theirs
        return
    parameters = list(signature.parameters.values())
    keywords = [p.name for p in parameters[2:] if p.kind is not p.VAR_KEYWORD]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for key in args:
            if key not in keywords:
                accepted = f"it takes {', '.join(keywords)}" if keywords else "it takes none"
                raise RewardLoadError(f"reward {name!r}: no argument {key!r}{_nearest(key, keywords)}; {accepted}")
    try:
        signature.bind("task", "call or trajectory", **args)
    except TypeError as error:
        raise RewardLoadError(
            f"reward {name!r}: {function.__name__}{signature} cannot be called as fn(task, call or trajectory"
            f"{''.join(f', {key}=…' for key in args)}): {error}"
        ) from error
    _check_segment(name, parameters, segment)


def _check_segment(name: str, parameters: list[inspect.Parameter], segment: str | None) -> None:
    """A second parameter named `call` or `trajectory` says which segment the function was written for."""
    if segment is None or len(parameters) < 2:
        return
    written_for = {scored: seg for seg, scored in SCORED.items()}.get(parameters[1].name, segment)
    if written_for != segment:
        raise RewardLoadError(
            f"reward {name!r} scores a {parameters[1].name}: its segment must be {written_for!r}, not {segment!r}"
        )


def _nearest(name: str, offered: Any) -> str:
    close = difflib.get_close_matches(name, list(offered), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
