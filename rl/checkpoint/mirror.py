"""The remote kept in line with the run's disk, in the background. Whatever goes wrong there never stops a run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Protocol

from rl.checkpoint.checkpoint import step_of
from rl.checkpoint.lease.lease import LeaseLostError, may_always_write
from rl.checkpoint.manifest import CheckpointError
from rl.checkpoint.store import CheckpointStore
from rl.trajectory import Fault

log = logging.getLogger(__name__)


class Remote(Protocol):
    """Where checkpoints are copied to (rl.checkpoint.remote)."""

    url: str

    def steps(self) -> list[int]:
        """Steps whose checkpoint is there, newest first."""

    def best(self) -> int | None:
        """Step of the best one, if one is known as that."""

    def upload(self, folder: Path) -> None:
        """Copy a checkpoint of the disk, unless it is there already."""

    def point_to_best(self, step: int) -> None:
        """Let `best` name a checkpoint."""

    def prune(self, kept: Collection[int]) -> None:
        """Remove the checkpoints of all other steps."""

    def set_aside_after(self, step: int) -> None:
        """Rename later steps: the run was resumed from before them."""


class Mirror:
    """Copies what the disk keeps and the remote lacks, newest first; then removes there what is too old.

    Everything is looked at anew each time, so what failed is tried again with the next checkpoint.

    Args:
        may_write: raises LeaseLostError where another process writes the run by now.
    """

    def __init__(
        self, remote: Remote, store: CheckpointStore, may_write: Callable[[], None] = may_always_write
    ) -> None:
        self._remote, self._store, self._may_write = remote, store, may_write
        self._state = threading.Condition()
        self._wanted = self._working = False
        self._in_line = True
        self._metrics: dict[str, float] = {}
        self._faults: list[Fault] = []

    def __str__(self) -> str:
        return self._remote.url

    def wake(self) -> None:
        """There is something new on the disk. Returns at once."""
        with self._state:
            self._wanted = True
            if not self._working:
                self._working = True
                threading.Thread(target=self._work, name="mirror", daemon=True).start()

    def finish(self, timeout_s: float) -> bool:
        """Wait until nothing is left to copy; False: not done in time, or the last attempt failed."""
        with self._state:
            done = self._state.wait_for(lambda: not self._working, timeout_s)
            return done and self._in_line

    def poll(self) -> dict[str, float]:
        """Numbers since the last call; waits for nothing."""
        with self._state:
            numbers, self._metrics = self._metrics, {}
            return numbers

    def take_faults(self) -> list[Fault]:
        """Attempts that failed since the last call of this method."""
        with self._state:
            faults, self._faults = self._faults, []
            return faults

    def _work(self) -> None:
        """Runs in a thread of its own, until there is nothing new."""
        while self._take():
            start, failure = time.perf_counter(), ""
            try:
                self._bring_in_line()
            except LeaseLostError as error:  # the run ends by it, and says so
                failure = str(error)
            except (CheckpointError, OSError) as error:
                failure = str(error)
                log.warning("not copied (the run goes on; tried again after the next save): %s", failure)
            except Exception as error:  # a defect of ours is no reason to lose a run
                failure = f"{type(error).__name__}: {error}"
                log.exception("not copied to %s (the run goes on; tried again after the next save)", self)
            self._take_note(time.perf_counter() - start, failure)

    def _take_note(self, seconds: float, failure: str) -> None:
        with self._state:
            self._in_line = not failure
            if failure:
                action = "the checkpoints are on the disk; copied after the next save"
                self._faults.append(Fault("remote_failed", "mirror", failure, action, time.time(), 0.0))
            for name, value in (("seconds", seconds), ("failed", float(bool(failure)))):
                self._metrics[f"save/remote_{name}"] = self._metrics.get(f"save/remote_{name}", 0.0) + value

    def _take(self) -> bool:
        """Whether there is work; if not, the thread has ended for everyone who looks."""
        with self._state:
            self._working, self._wanted = self._wanted, False
            self._state.notify_all()
            return self._working

    def _bring_in_line(self) -> None:
        kept = self._store.kept()
        if not kept:
            return
        self._may_write()
        self._remote.set_aside_after(step_of(kept[0]))
        for folder in kept:
            self._may_write()
            with self._store.hold(folder):
                if folder.is_dir():  # else it has become too old in the meantime
                    self._remote.upload(folder)
        self._may_write()
        best = self._store.best_score()
        if best is not None:
            self._remote.point_to_best(best[0])
        self._remote.prune(self._store.steps_kept(self._remote.steps(), best[0] if best else self._remote.best()))
