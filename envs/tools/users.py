"""Tools of users: loaded by the name that a configuration gives them, checked, and called so that nothing of theirs
can end a worker. What goes wrong in one is a value with file and line.
"""

from __future__ import annotations

import inspect
import linecache
import math
import re
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from envs.tools.rules import RetrievalRules
from envs.tools.tool import ClipView, Insertion, Shown, Tool
from envs.tools.toolbox import BUILTIN, Encoder, Toolbox, not_enabled
from envs.video.file import VideoError
from rl.trajectory import Call, ErrorLocation, GrantedCall, MalformedCall, RefusedCall, ToolCall, ToolFailure
from rl.user_code.errors import INSTALLED, OURS, UserCodeError, bounded, message
from rl.user_code.loading import load_object, nearest
from rl.user_code.reference import parse_reference

NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
TAG = re.compile(r"</?[a-z][a-z0-9_]*/?>")
KEPT_TAGS = ("<think>", "</think>", "<answer>", "</answer>")  # that say where thought and answer are
METHODS = ("parse", "tokens", "insert")
REASON_CHARS, SOURCE_CHARS, TRACEBACK_CHARS = 200, 160, 8_000


class ToolLoadError(UserCodeError):
    """A tool cannot be loaded; the message says which, why, and what would work."""


class ToolFailedError(Exception):
    """A tool raised, or did not do what it had said."""

    def __init__(self, failure: ToolFailure) -> None:
        super().__init__(failure.detail)
        self.failure = failure

    @classmethod
    def of(cls, tool: Tool, detail: str) -> ToolFailedError:
        """Nothing was raised: the place is where its `insert` begins."""
        own = tool.insert_code if isinstance(tool, UsersTool) else tool.insert
        return cls(ToolFailure(tool.name, detail, _defined_at(own)))


def load_toolbox(rules: RetrievalRules, processor: Encoder) -> Toolbox:
    """Every tool that `rules` names, built in or a user's.

    Raises:
        ToolLoadError: there is no such tool, or it cannot be used.
        ToolTagsError: the policy has no tokens for its tags.
    """
    return Toolbox(load_tools(rules), processor, not_enabled(rules))


def load_tools(rules: RetrievalRules) -> list[Tool]:
    """As `load_toolbox`, without a policy."""
    tools = [BUILTIN[name](rules) if name in BUILTIN else _load(name, rules.tool_timeout_s) for name in rules.tools]
    names = [tool.name for tool in tools]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ToolLoadError(f"retrieval.tools: two tools are called {twice!r}: rename one (its `name`)")
    return tools


class UsersTool:
    """A user's tool as the environment calls it: whatever it raises or returns wrongly is a ToolFailedError."""

    def __init__(self, tool: Any, timeout_s: float) -> None:
        """
        Args:
            tool: with `name`, `tags`, and the methods of envs.tools.tool.Tool, of which `shrink` is not asked.
        """
        self._tool, self._timeout_s = tool, timeout_s
        self.name, self.tags = str(tool.name), tuple(map(str, tool.tags))
        self.nothing = str(getattr(tool, "nothing", self.name))
        self.insert_code = tool.insert

    def parse(self, text: str, clip: ClipView) -> Call:
        """Of the text, the tool is given the request: from the last of its first tag on."""
        start = text.rfind(self.tags[0])
        if start < 0:
            return MalformedCall(f"no {self.tags[0]} before {self.tags[-1]}", self.name)
        call = self._ask(self._tool.parse, text[start:], clip)
        if isinstance(call, MalformedCall | RefusedCall):
            reason = " ".join(str(call.reason).split()) or "no reason is given"
            return replace(call, tool=self.name, reason=bounded(reason, REASON_CHARS))
        if not isinstance(call, ToolCall):
            expected = "a ToolCall, MalformedCall or RefusedCall"
            raise self._broke(self._tool.parse, f"parse returned {type(call).__name__}, not {expected}")
        try:
            return replace(call, tool=self.name, arguments={str(k): _plain(v) for k, v in call.arguments.items()})
        except (TypeError, AttributeError) as error:
            raise self._broke(self._tool.parse, f"parse returned arguments that are not plain: {error}") from error

    def tokens(self, call: GrantedCall, clip: ClipView) -> int:
        """A whole number."""
        count = self._ask(self._tool.tokens, call, clip)
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 0:
            raise self._broke(self._tool.tokens, f"tokens returned {count!r:.80}, not how many will be inserted")
        return int(count)

    def shrink(self, call: GrantedCall, clip: ClipView, room: int) -> Call:
        """It is not asked for less."""
        return RefusedCall("no room is left for it", self.name)

    def insert(self, call: GrantedCall, clip: ClipView) -> Insertion:
        """Frames or text.

        Raises:
            VideoError: the clip cannot be read.
        """
        inserted = self._ask(self._tool.insert, call, clip)
        if isinstance(inserted, str) and inserted.strip():
            return inserted
        pixels = inserted.pixels_THWC if isinstance(inserted, Shown) else None
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 4 or not pixels.size:
            raise self._broke(
                self._tool.insert,
                f"insert returned {type(inserted).__name__}, neither text nor Shown frames (uint8, T H W 3): make them "
                "with clip.frames, clip.image or clip.picture",
            )
        return inserted

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The function's value, waited for no longer than the deadline. A thread that hangs is left behind."""
        outcome: dict[str, Any] = {}

        def run() -> None:
            try:
                outcome["value"] = function(*arguments)
            except BaseException as error:  # sys.exit ends the call, not the worker
                outcome["error"] = error

        thread = threading.Thread(target=run, name=f"tool {self.name}", daemon=True)
        thread.start()
        thread.join(self._timeout_s)
        if "value" in outcome:
            return outcome["value"]
        error = outcome.get("error")
        if isinstance(error, VideoError):
            raise error
        if error is None:
            detail = f"gave nothing within {self._timeout_s:g} s (retrieval.tool_timeout_s)"
            raise self._broke(function, f"{function.__name__} {detail}")
        where = _located(error) or _defined_at(function)
        raise ToolFailedError(ToolFailure(self.name, f"raised {message(error)}", where)) from error

    def _broke(self, function: Callable[..., Any], detail: str) -> ToolFailedError:
        return ToolFailedError(ToolFailure(self.name, detail, _defined_at(function)))


def _load(name: str, timeout_s: float) -> Tool:
    reference = parse_reference(name)
    if reference is None:
        raise ToolLoadError(
            f"retrieval.tools: unknown tool {name!r}{nearest(name, BUILTIN)}; built in: {', '.join(sorted(BUILTIN))}; "
            "your own: 'package.module:NAME' or 'path/file.py:NAME'"
        )
    try:
        tool = load_object(f"tool {name!r}", reference, "tool")
    except UserCodeError as error:
        raise ToolLoadError(str(error)) from error
    try:
        tool = tool() if isinstance(tool, type) else tool
        _require_shape(name, tool)
        return UsersTool(tool, timeout_s)
    except ToolLoadError:
        raise
    except BaseException as error:  # an object of a user's may fail at anything that is asked of it
        raise ToolLoadError(f"tool {name!r} cannot be made: {message(error)}") from error


def _require_shape(name: str, tool: Any) -> None:
    lacking = [member for member in ("name", "tags", *METHODS) if not hasattr(tool, member)]
    if lacking:
        raise ToolLoadError(f"tool {name!r} has no {', '.join(lacking)}; what a tool is: envs/tools/tool.py")
    if uncalled := [member for member in METHODS if not callable(getattr(tool, member))]:
        raise ToolLoadError(f"tool {name!r}: {', '.join(uncalled)} cannot be called")
    if not isinstance(tool.name, str) or not NAME.fullmatch(tool.name):
        raise ToolLoadError(f"tool {name!r}: its name must be of small letters, digits and _, got {tool.name!r:.60}")
    tags = tool.tags
    if isinstance(tags, str) or not tags or not all(isinstance(tag, str) and TAG.fullmatch(tag) for tag in tags):
        raise ToolLoadError(
            f"tool {name!r}: its tags must be like ('<{tool.name}>', '</{tool.name}>'), got {tags!r:.80}"
        )
    if taken := [tag for tag in tags if tag in KEPT_TAGS]:
        raise ToolLoadError(f"tool {name!r}: {taken[0]} says where thought and answer are; choose another tag")


def _plain(value: Any) -> Any:
    """
    Raises:
        TypeError: it is no number, text, or list of them, which records and checkpoints could keep.
    """
    if isinstance(value, str | bool | int):
        return value
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{value} is no finite number")
        return value
    if isinstance(value, tuple | list) and not isinstance(value, Mapping):
        return tuple(map(_plain, value))
    raise TypeError(f"{type(value).__name__} is no number, text, or tuple of them")


def _located(error: BaseException) -> ErrorLocation | None:
    """The last line of the user's own code that an exception came through."""
    ours = (str(Path(__file__).parents[1]), threading.__file__, OURS)
    stack = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
    own = [frame for frame in stack if not frame.filename.startswith((*INSTALLED, "<"))]
    if not own:
        return None
    told = traceback.TracebackException.from_exception(error)
    told.stack = traceback.StackSummary.from_list(stack)
    at, source = own[-1], bounded((own[-1].line or "").strip(), SOURCE_CHARS)
    return ErrorLocation(at.filename, at.lineno or 0, at.name, source, bounded("".join(told.format()), TRACEBACK_CHARS))


def _defined_at(function: Callable[..., Any]) -> ErrorLocation | None:
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None:
        return None
    source = linecache.getline(code.co_filename, code.co_firstlineno).strip()
    return ErrorLocation(code.co_filename, code.co_firstlineno, code.co_name, bounded(source, SOURCE_CHARS), "")
