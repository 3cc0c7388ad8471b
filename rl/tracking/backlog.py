"""What a run writes step by step (metrics, records, faults) when the disk does not take it: it waits for the next time.

A full disk often has room again within the hour, and none of these is worth a run. What waits is in memory, file by
file in its order, and tried again whenever something is written. Too many steps in a row in which a file could not be
written stop the run, as do too many failed saves.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from rl.checkpoint.lease.lease import may_always_write
from rl.checkpoint.manifest import explained
from rl.trajectory import Fault

log = logging.getLogger(__name__)

Write = Callable[[], object]  # raises OSError if it could not, and can then be called again


class UnwrittenError(RuntimeError):
    """Files of a run cannot be written; the message names one, with the cause and the remedy."""


@dataclass(slots=True)
class Waiting:
    """What one file has not taken yet."""

    writes: deque[Write] = field(default_factory=deque)
    cause: str = ""  # of the last failure; empty: it was not tried yet
    since_s: float = 0.0  # time.time() of the first failure


class Backlog:
    """Writes at once, or keeps what cannot be written.

    with Backlog(max_failed=3) as backlog:
        backlog.write(path, step, partial(append, path, line))    # done; or a warning, and done later
    # everything is written, or UnwrittenError raised

    Args:
        max_failed: steps in a row with a failure that stop the run.
        may_write: raises LeaseLostError where another process writes the run by now; nothing is written then.
    """

    def __init__(self, max_failed: int, may_write: Callable[[], None] = may_always_write) -> None:
        self._max_failed, self._may_write = max_failed, may_write
        self._waiting: dict[Path, Waiting] = {}
        self._steps: set[int] = set()  # in a row in which something could not be written
        self._faults: list[Fault] = []

    def write(self, path: Path, step: int, write: Write) -> None:
        """Write to a file, after everything that waits for it.

        Raises:
            UnwrittenError: too many steps in a row.
        """
        self.put(path, write)
        self.retry()
        if not self._waiting:
            self._steps.clear()
            return
        is_reported = step in self._steps
        self._steps.add(step)
        if len(self._steps) >= self._max_failed:
            raise UnwrittenError(
                f"{self._describe()}; {len(self._steps)} steps in a row could not be written down "
                f"(trainer.max_failed_saves={self._max_failed}), so the run stops at step {step}"
            )
        if not is_reported:
            log.warning(
                "%s (%d of %d steps in a row; the run goes on, what could not be written is kept and tried again)",
                *(self._describe(), len(self._steps), self._max_failed),
            )

    def put(self, path: Path, write: Write) -> None:
        """To be written the next time anything is, or at the end."""
        self._waiting.setdefault(path, Waiting()).writes.append(write)

    def retry(self) -> None:
        """Write what waits, as far as the disk takes it."""
        if self._waiting:
            self._may_write()
        for path, waiting in list(self._waiting.items()):
            while waiting.writes:
                write = waiting.writes.popleft()
                try:
                    write()
                except OSError as error:
                    waiting.writes.appendleft(write)
                    waiting.cause, waiting.since_s = explained(error), waiting.since_s or time.time()
                    break
            if waiting.writes:
                continue
            del self._waiting[path]
            if waiting.cause:
                seconds = time.time() - waiting.since_s
                kept = "kept, and written when the disk took it"
                self._faults.append(Fault("write_failed", path.name, waiting.cause, kept, waiting.since_s, seconds))

    def take_faults(self) -> list[Fault]:
        """Files that could not be written for a while, and are, since the last call of this method."""
        faults, self._faults = self._faults, []
        return faults

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.retry()
        if not self._waiting:
            return
        if error is None:
            raise UnwrittenError(f"{self._describe()}; the run ends, and this is lost")
        log.error("%s; the run ends, and this is lost", self._describe())  # the error that is being raised goes on

    def _describe(self) -> str:
        (path, waiting), *others = self._waiting.items()
        more = f" (and {len(others)} more files)" if others else ""
        return f"{path}{more}: could not be written: {waiting.cause}"
