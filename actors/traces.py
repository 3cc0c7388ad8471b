"""Trace workers: supervised traces played through the environment, decoded in parallel, pixels left in the store."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray

from actors.frames import park
from actors.waiting import gather
from envs.formats import RetrievalTrace, UnusableRow
from envs.rollout import Surroundings
from envs.traces import trace_to_trajectory
from rl.trajectory import TrajectoryGroup

log = logging.getLogger(__name__)

CHUNK = 16  # traces per remote call: enough to hide its cost, few enough to show progress


class TraceError(RuntimeError):
    """No trace can be learned from, or a worker did not answer in time."""


class TraceWorker:
    """Plays traces. Holds the environment's parts, no engine."""

    def __init__(self, make_surroundings: Callable[[], Surroundings]) -> None:
        self._surroundings = make_surroundings()

    def play(self, traces: list[RetrievalTrace]) -> list[TrajectoryGroup | str]:
        """One group of one trajectory per trace, or why it cannot be used."""
        return [self._play(trace) for trace in traces]

    def _play(self, trace: RetrievalTrace) -> TrajectoryGroup | str:
        try:
            trajectory, opening = trace_to_trajectory(trace, self._surroundings)
        except UnusableRow as error:
            return str(error)
        return park(TrajectoryGroup(trace.task, (trajectory,), opening))


class TracePool:
    """Driver's end of TraceWorker. Its workers own the pixels of what they played: keep it while those are used."""

    def __init__(
        self,
        make_surroundings: Callable[[], Surroundings],
        num_workers: int,
        options: Callable[[int], Mapping[str, Any]],
        *,
        timeout_s: float,
    ) -> None:
        self._timeout_s = timeout_s
        remote = ray.remote(TraceWorker)
        self._workers = [remote.options(**options(index)).remote(make_surroundings) for index in range(num_workers)]

    def play(self, traces: Sequence[RetrievalTrace]) -> Iterator[TrajectoryGroup]:
        """Groups of one trajectory, in order; traces that cannot be used are reported and left out.

        Raises:
            TraceError: a chunk took longer than the timeout of each of its traces together.
        """
        chunks = [list(traces[i : i + CHUNK]) for i in range(0, len(traces), CHUNK)]
        turn = itertools.cycle(self._workers)
        calls = [worker.play.remote(chunk) for worker, chunk in zip(turn, chunks, strict=False)]
        for call in calls:
            (played,) = gather([call], timeout_s=self._timeout_s * CHUNK, doing="play traces", failure=TraceError)
            for group in played:
                if isinstance(group, str):
                    log.warning("trace left out: %s", group)
                else:
                    yield group

    def stop(self) -> None:
        """End the workers; the pixels go with them."""
        for worker in self._workers:
            ray.kill(worker, no_restart=True)
