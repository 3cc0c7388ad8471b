"""The terminal of a command: two consoles, what they print as it is, and which log records reach them.

A terminal gets colours and bars and is wrapped at its width; anything else (a job's log, nohup, CI) gets plain lines
that are never wrapped.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import time
from typing import Any

from rich.console import Console
from rich.text import Text

from rl.tracking.log_file import FILE_ONLY, SAID, EarlyRecords

OURS = ("rl", "actors", "envs", "rewards", "cluster", "benchmarks", "__main__")  # packages whose records are for users
PLAIN_WIDTH = 1000  # of a table at most, where there is no terminal: no cell is broken into lines
TRACEBACKS = logging.Formatter()
STYLES = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "red"}


def make_console(*, stderr: bool = False) -> Console:
    """Standard output or error, as a terminal or as plain lines."""
    file = sys.stderr if stderr else sys.stdout
    if isinstance(file, io.TextIOWrapper):
        file.reconfigure(errors="backslashreplace")  # a locale without "…" must not end a run
    if file.isatty():
        return Console(stderr=stderr)
    width = None if "COLUMNS" in os.environ else PLAIN_WIDTH
    return Console(stderr=stderr, width=width, soft_wrap=True, force_terminal=False, no_color=True)


console = make_console()
errors = make_console(stderr=True)


class TerminalLog(logging.Handler):
    """Log records as lines with their wall-clock time: ours from INFO on, of libraries errors only."""

    def __init__(self, shown_on: Console) -> None:
        super().__init__(logging.INFO)
        self._console = shown_on

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is for a user to read."""
        if record.name in (SAID, FILE_ONLY):
            return False
        return record.name.partition(".")[0] in OURS or record.levelno >= logging.ERROR

    def emit(self, record: logging.LogRecord) -> None:
        """Print it; what a process logs while it ends must not end it otherwise."""
        try:
            name = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
            line = f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {name}{record.getMessage()}"
            if record.exc_info and tracebacks_shown():
                line = f"{line}\n{TRACEBACKS.formatException(record.exc_info)}"
            self._console.print(Text(line, style=STYLES.get(record.levelno, "")), soft_wrap=True)
        except (OSError, ValueError, TypeError):  # a closed pipe; arguments that do not fit the message
            self.handleError(record)


def configure_logging() -> None:
    """Lines for users go to standard error; all records are kept for the log file of a run (rl.tracking.log_file).

    Python's own warnings are records, too. They and libraries' warnings never reach the terminal: a user cannot act
    on them.
    """
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.handlers = [TerminalLog(errors), EarlyRecords()]
    logging.captureWarnings(True)


def show_tracebacks() -> None:
    """From here on, lines of level DEBUG of ours and the traceback of every failure are shown."""
    for name in OURS:
        logging.getLogger(name).setLevel(logging.DEBUG)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, TerminalLog):
            handler.setLevel(logging.DEBUG)


def tracebacks_shown() -> bool:
    """Whether `show_tracebacks` was called."""
    return logging.getLogger(OURS[0]).level == logging.DEBUG


def say(text: str) -> None:
    """Print text as it is: no markup in what others wrote, no line broken in a pipe."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_json(record: dict[str, Any]) -> None:
    """Print one JSON object on a line of its own."""
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()
