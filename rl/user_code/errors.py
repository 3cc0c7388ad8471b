"""What users' code raises, told on one line; and what it did not raise itself."""

from __future__ import annotations

import dis
import re
import signal
import sysconfig
import traceback
from pathlib import Path
from types import FrameType, TracebackType

MESSAGE_CHARS = 500  # of an exception's message: it may quote a whole trajectory
MODULES = re.compile(r"\buser_code_[0-9a-f]{8}\.")  # before the names of modules loaded from files
INSTALLED = tuple(sorted({sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}))
OURS = str(Path(__file__).parent)


class UserCodeError(ValueError):
    """Code that a configuration names cannot be loaded; the message says which, why, and what would work."""


def message(error: BaseException) -> str:
    """Class and message of an exception, on one line of bounded length."""
    try:
        text = str(error)
    except BaseException as second:  # a user's exception may fail while it is shown
        text = f"(its message cannot be shown: {type(second).__name__})"
    line = MODULES.sub("", " ".join(text.split()))
    return f"{type(error).__name__}: {bounded(line, MESSAGE_CHARS)}"


def place(error: BaseException) -> str:
    """The last line of a user's code that an exception came from, as " at FILE:LINE"; empty if there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((*INSTALLED, OURS, "<"))]
    return f" at {own[-1].filename}:{own[-1].lineno}" if own and not isinstance(error, SyntaxError) else ""


def bounded(text: str, limit: int) -> str:
    """A text of at most about `limit` characters: both ends are kept."""
    if len(text) <= limit:
        return text
    kept = limit // 2
    return f"{text[:kept]} … {text[-kept:]}"


def is_from_signal(error: BaseException) -> bool:
    """Whether an exception was raised by a signal's handler (Ctrl-C, a scheduler's SIGTERM), not by the code it met."""
    handlers = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    codes = [code for handler in handlers if (code := getattr(handler, "__code__", None)) is not None]
    if any(frame.f_code in codes for frame in _frames(error.__traceback__)):
        return True
    if not isinstance(error, KeyboardInterrupt) or handlers[0] is not signal.default_int_handler:
        return False
    return not _is_raised(error)  # written in C, that handler leaves no frame


def _is_raised(error: BaseException) -> bool:
    """Whether an exception comes from a `raise` in Python code."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def _frames(trace: TracebackType | None) -> list[FrameType]:
    found = []
    while trace is not None:
        found.append(trace.tb_frame)
        trace = trace.tb_next
    return found
