"""Trace workers: supervised traces played through the environment, decoded in parallel, pixels left in the store."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError

from actors.frames import park
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


def play_traces(
    traces: Sequence[RetrievalTrace],
    make_surroundings: Callable[[], Surroundings],
    options: Sequence[Mapping[str, Any]],
    *,
    timeout_s: float,
) -> Iterator[TrajectoryGroup]:
    """Play all traces on as many workers as there are options; yields in order, skips and reports what is unusable.

    The workers live as long as the iteration and own the pixels: use them before it ends.

    Raises:
        TraceError: a chunk took longer than `timeout_s`.
    """
    remote = ray.remote(TraceWorker)
    workers = [remote.options(**option).remote(make_surroundings) for option in options]
    chunks = [list(traces[i : i + CHUNK]) for i in range(0, len(traces), CHUNK)]
    calls = [workers[i % len(workers)].play.remote(chunk) for i, chunk in enumerate(chunks)]
    for call in calls:
        try:
            played = ray.get(call, timeout=timeout_s * CHUNK)
        except GetTimeoutError as error:
            raise TraceError(f"traces were not played within {timeout_s * CHUNK:.0f} s") from error
        for group in played:
            if isinstance(group, str):
                log.warning("trace left out: %s", group)
            else:
                yield group
