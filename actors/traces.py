"""Trace workers: supervised traces played through the environment, decoded in parallel, pixels left in the store."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from actors.frames import park
from actors.waiting import gather
from envs.data.formats import RetrievalTrace
from envs.data.rows import UnusableRow
from envs.data.traces import trace_to_trajectory
from envs.rollout import EpisodeContext
from rl.learner.sft import supervised_sample
from rl.trajectory import TrainingSample, TrajectoryGroup

log = logging.getLogger(__name__)

CHUNK = 16  # traces per remote call at most: enough to hide its cost
KEPT_BYTES = 256 * 2**20  # of pixels kept in the object store for the next epoch
LONGEST_GAP = 64  # unusable traces in a row before the data set, not the trace, is at fault


class TraceError(RuntimeError):
    """No trace can be learned from, or a worker did not answer in time."""


class TraceWorker:
    """Plays traces. Holds the environment's parts, no engine."""

    def __init__(self, make_episode_context: Callable[[], EpisodeContext]) -> None:
        self._episode_context = make_episode_context()

    def play(self, traces: list[RetrievalTrace]) -> list[TrajectoryGroup | str]:
        """One group of one trajectory per trace, or why it cannot be used."""
        return [self._play(trace) for trace in traces]

    def _play(self, trace: RetrievalTrace) -> TrajectoryGroup | str:
        try:
            trajectory, opening = trace_to_trajectory(trace, self._episode_context)
        except UnusableRow as error:
            return str(error)
        return park(TrajectoryGroup(trace.task, (trajectory,), opening))


class TracePool:
    """Driver's end of TraceWorker. Its workers own the pixels of what they played: keep it while those are used."""

    def __init__(
        self,
        make_episode_context: Callable[[], EpisodeContext],
        num_workers: int,
        options: Callable[[int], Mapping[str, Any]],
        *,
        timeout_s: float,
    ) -> None:
        self._timeout_s = timeout_s
        remote = ray.remote(TraceWorker)
        self._workers = [remote.options(**options(index)).remote(make_episode_context) for index in range(num_workers)]
        self._turn = itertools.cycle(self._workers)

    def start(self, traces: Sequence[RetrievalTrace]) -> list[ray.ObjectRef]:
        """Begin to play traces, spread over the workers; returns at once, with calls for `collect`."""
        size = max(1, min(CHUNK, math.ceil(len(traces) / len(self._workers))))
        chunks = [list(traces[i : i + size]) for i in range(0, len(traces), size)]
        return [next(self._turn).play.remote(chunk) for chunk in chunks]

    def collect(self, calls: Sequence[ray.ObjectRef]) -> list[TrajectoryGroup | str]:
        """What came of started traces, in order: a group of one trajectory, or why the trace cannot be used.

        Raises:
            TraceError: a worker died, or a chunk took longer than the timeout of each of its traces together.
        """
        chunks = [
            gather([call], timeout_s=self._timeout_s * CHUNK, doing="play traces", failure=TraceError)[0]
            for call in calls
        ]
        return [played for chunk in chunks for played in chunk]

    def stop(self) -> None:
        """End the workers; the pixels go with them."""
        for worker in self._workers:
            ray.kill(worker, no_restart=True)


@dataclass(frozen=True, slots=True)
class _SampleBatch:
    """A batch of SFT samples whose missing traces are being rolled out."""

    indices: tuple[int, ...]
    missing: tuple[int, ...]
    calls: list[ray.ObjectRef]


class TraceFeed:
    """Traces by index as training samples, played when needed, one batch ahead of whoever learns from them.

    A trace that cannot be used is reported, and the next one that can takes its place. Samples are kept for the next
    epoch while their pixels fit in a budget; beyond it traces are played again, with the same outcome.
    """

    def __init__(self, pool: TracePool, traces: Sequence[RetrievalTrace], budget_bytes: int = KEPT_BYTES) -> None:
        self._pool, self._traces, self._room = pool, traces, budget_bytes
        self._kept: dict[int, TrainingSample] = {}
        self._instead: dict[int, int] = {}  # unusable trace -> the next usable one

    def samples(self, batches: Iterable[Sequence[int]]) -> Iterator[list[TrainingSample]]:
        """The samples of each batch, in order; the batch after it is being played by then.

        Raises:
            TraceError: many traces in a row cannot be used, or a worker failed.
        """
        current: _SampleBatch | None = None
        for indices in batches:
            following = self._begin(indices)
            if current is not None:
                yield self._finish(current)
            current = following
        if current is not None:
            yield self._finish(current)

    def _begin(self, indices: Sequence[int]) -> _SampleBatch:
        wanted = tuple(self._instead.get(index, index) for index in indices)
        missing = tuple(index for index in dict.fromkeys(wanted) if index not in self._kept)
        return _SampleBatch(wanted, missing, self._pool.start([self._traces[index] for index in missing]))

    def _finish(self, batch: _SampleBatch) -> list[TrainingSample]:
        played = zip(batch.missing, self._pool.collect(batch.calls), strict=True)
        fresh = {index: self._taken(index, outcome) for index, outcome in played}
        return [fresh.get(index) or self._kept.get(index) or self._substitute(index) for index in batch.indices]

    def _taken(self, index: int, played: TrajectoryGroup | str) -> TrainingSample | None:
        """A played trace as a sample, kept if there is room; None if it cannot be used."""
        if isinstance(played, str):
            log.warning("trace left out: %s", played)
            return None
        sample = supervised_sample(played)
        size = sum(block.num_frames * block.height * block.width * 3 for block in sample.videos)
        if index not in self._kept and size <= self._room:
            self._kept[index] = sample
            self._room -= size
        return sample

    def _substitute(self, index: int) -> TrainingSample:
        """The next usable trace after one that is not."""
        for distance in range(1, min(len(self._traces), LONGEST_GAP)):
            other = (index + distance) % len(self._traces)
            sample = self._kept.get(other)
            if sample is None:
                (played,) = self._pool.collect(self._pool.start([self._traces[other]]))
                sample = self._taken(other, played)
            if sample is not None:
                self._instead[index] = other
                return sample
        (reason,) = self._pool.collect(self._pool.start([self._traces[index]]))
        raise TraceError(f"no trace of {min(len(self._traces), LONGEST_GAP)} in a row can be used; the first: {reason}")
