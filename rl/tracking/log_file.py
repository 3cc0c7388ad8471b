"""RUN/logs: everything this process logs, what the terminal does not show included.

The terminal has the lines a user can act on. Libraries' warnings, Python's `warnings`, records of this package below
INFO, stacks of workers that hung and the traceback of an error that ends the command stand in the file alone.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SAID = "rl.said"  # logger of what a console has shown already: for log files, not for the terminal
LOGS = "logs"  # in a run's folder
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
FILE_ONLY = "rl.file_only"  # logger of what is too long for a terminal
MOST_EARLY = 10_000  # records kept until there is a file


class EarlyRecords(logging.Handler):
    """Keeps what is logged before a run has a folder; `keep_log` writes it down."""

    def __init__(self) -> None:
        super().__init__()
        self.records: deque[logging.LogRecord] = deque(maxlen=MOST_EARLY)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it; nothing is formatted yet."""
        self.records.append(record)


class LogFile(logging.FileHandler):
    """A log file that a full disk costs lines, and nothing else."""

    def handleError(self, record: logging.LogRecord) -> None:
        """The line is lost; an error here must not end a run, nor be reported into the same log."""


@contextmanager
def keep_log(run_dir: Path) -> Iterator[Path]:
    """A file in RUN/logs for all records of this process, from its start on; one file per start.

    Raises:
        OSError: the folder or the file cannot be made.
    """
    folder = run_dir / LOGS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"driver-{time.strftime('%Y%m%d-%H%M%S')}.log"
    file = LogFile(path, encoding="utf-8", errors="backslashreplace")
    file.setFormatter(logging.Formatter(FORMAT))
    root = logging.getLogger()
    for early in [handler for handler in root.handlers if isinstance(handler, EarlyRecords)]:
        for record in early.records:
            file.handle(record)
        root.removeHandler(early)
    root.addHandler(file)
    try:
        yield path
    except BaseException as error:
        ended = "ended by %s", (type(error).__name__,), (type(error), error, error.__traceback__)
        file.handle(logging.LogRecord(__name__, logging.ERROR, __file__, 0, *ended))
        raise
    finally:
        root.removeHandler(file)
        file.close()
