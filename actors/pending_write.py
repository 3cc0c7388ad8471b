"""A checkpoint that the learner ranks are writing while they learn on."""

from __future__ import annotations

from collections.abc import Sequence

import ray

from actors.worker.process import WorkerProcess
from actors.worker.waiting import WorkerError, gather
from rl.trajectory import WrittenFile


class LearnerError(WorkerError):
    """A learner rank failed or did not answer in time."""


class PendingWrite:
    """The ranks' part of a checkpoint while it is being written."""

    def __init__(self, calls: list[ray.ObjectRef], processes: Sequence[WorkerProcess]) -> None:
        self._calls, self._processes = calls, processes

    def result(self, timeout_s: float) -> list[WrittenFile]:
        """The files of all ranks once they are on disk. May be called from any thread.

        Raises:
            LearnerError: a rank could not write, died, or is not done in time.
        """
        parts = gather(
            self._calls,
            timeout_s=timeout_s,
            doing="write a checkpoint",
            failure=LearnerError,
            processes=self._processes,
        )
        return [file for part in parts for file in part]

    def wait(self, timeout_s: float) -> None:
        """Wait until every rank has written, failed or died, at most `timeout_s`."""
        ray.wait(self._calls, num_returns=len(self._calls), timeout=timeout_s)
