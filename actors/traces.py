"""Trace workers: supervised traces replayed through the environment in parallel, pixels left in the object store."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from actors.frames import park
from actors.worker.process import ProcessLocation, WorkerProcess, own_location
from actors.worker.waiting import WorkerError, gather
from envs.data.formats import RetrievalTrace
from envs.data.rows import UnusableRow
from envs.data.traces import trace_to_trajectory
from envs.rollout import EpisodeContext
from rl.learner.sft import supervised_sample
from rl.trajectory import TrainingSample, TrajectoryGroup

log = logging.getLogger(__name__)

CHUNK = 16  # traces per remote call at most: enough to hide the call's overhead
KEPT_BYTES = 256 * 2**20  # of pixels kept in the object store for the next epoch
MAX_UNUSABLE = 64  # traces in a row; beyond it the data set is at fault


class TraceError(WorkerError):
    """No trace is usable, or a worker failed or did not answer in time."""


class TraceWorker:
    """Replays traces in the environment, without an engine."""

    def __init__(self, make_episode_context: Callable[[], EpisodeContext]) -> None:
        self._episode_context = make_episode_context()

    def location(self) -> ProcessLocation:
        """Of this process."""
        return own_location()

    def replay(self, traces: list[RetrievalTrace]) -> list[TrajectoryGroup | str]:
        """One group of one trajectory per trace, or why it cannot be used."""
        return [self._replay(trace) for trace in traces]

    def _replay(self, trace: RetrievalTrace) -> TrajectoryGroup | str:
        try:
            trajectory, coarse_frames = trace_to_trajectory(trace, self._episode_context)
        except UnusableRow as error:
            return str(error)
        return park(TrajectoryGroup(trace.task, (trajectory,), coarse_frames))


class TracePool:
    """Driver's end of the trace workers, which own the pixels they decoded: keep the pool while those are used."""

    def __init__(
        self,
        make_episode_context: Callable[[], EpisodeContext],
        num_workers: int,
        options: Callable[[int], Mapping[str, Any]],
        *,
        timeout_s: float,
    ) -> None:
        self._timeout_s = timeout_s
        remote, named = ray.remote(TraceWorker), [options(index) for index in range(num_workers)]
        self._workers = [remote.options(**given).remote(make_episode_context) for given in named]
        self._processes = [
            WorkerProcess(given["name"], worker.location.remote())
            for given, worker in zip(named, self._workers, strict=True)
        ]
        self._turn = itertools.cycle(zip(self._workers, self._processes, strict=True))
        self._asked: dict[ray.ObjectRef, WorkerProcess] = {}  # by call, until it is collected

    def start(self, traces: Sequence[RetrievalTrace]) -> list[ray.ObjectRef]:
        """Start to replay traces, spread over the workers; returns at once, with calls for `collect`."""
        size = max(1, min(CHUNK, math.ceil(len(traces) / len(self._workers))))
        chunks = [list(traces[i : i + size]) for i in range(0, len(traces), size)]
        calls = []
        for chunk, (worker, process) in zip(chunks, self._turn, strict=False):
            calls.append(worker.replay.remote(chunk))
            self._asked[calls[-1]] = process
        return calls

    def collect(self, calls: Sequence[ray.ObjectRef]) -> list[TrajectoryGroup | str]:
        """Results of started traces, in order: a group of one trajectory, or why the trace cannot be used.

        Raises:
            TraceError: a worker died, or a chunk took longer than the timeouts of its traces together.
        """
        return [outcome for call in calls for outcome in self._collect(call)]

    def stop(self) -> None:
        """End the workers; the pixels go with them."""
        for worker in self._workers:
            ray.kill(worker, no_restart=True)

    def _collect(self, call: ray.ObjectRef) -> list[TrajectoryGroup | str]:
        (outcomes,) = gather(
            [call],
            timeout_s=self._timeout_s * CHUNK,
            doing="replay traces",
            failure=TraceError,
            processes=[self._asked.pop(call)],
        )
        return outcomes


@dataclass(frozen=True, slots=True)
class _SampleBatch:
    """A batch whose missing traces are being replayed."""

    indices: tuple[int, ...]
    missing: tuple[int, ...]
    calls: list[ray.ObjectRef]


class TraceFeed:
    """Traces by index as SFT samples, replayed when needed, one batch ahead of the trainer.

    An unusable trace is logged and replaced by the next usable one. Samples are kept for the next epoch while their
    pixels fit in a budget; beyond it traces are replayed, with the same outcome.
    """

    def __init__(self, pool: TracePool, traces: Sequence[RetrievalTrace], budget_bytes: int = KEPT_BYTES) -> None:
        self._pool, self._traces, self._room = pool, traces, budget_bytes
        self._kept: dict[int, TrainingSample] = {}
        self._instead: dict[int, int] = {}  # unusable trace -> the next usable one

    def samples(self, batches: Iterable[Sequence[int]]) -> Iterator[list[TrainingSample]]:
        """The samples of each batch, in order; the next batch is being replayed meanwhile.

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
        replayed = zip(batch.missing, self._pool.collect(batch.calls), strict=True)
        fresh = {index: self._taken(index, outcome) for index, outcome in replayed}
        return [fresh.get(index) or self._kept.get(index) or self._substitute(index) for index in batch.indices]

    def _taken(self, index: int, outcome: TrajectoryGroup | str) -> TrainingSample | None:
        """A replayed trace as a sample, kept if there is room; None if it cannot be used."""
        if isinstance(outcome, str):
            log.warning("trace left out: %s", outcome)
            return None
        sample = supervised_sample(outcome)
        size = sum(block.num_frames * block.height * block.width * 3 for block in sample.videos)
        if index not in self._kept and size <= self._room:
            self._kept[index] = sample
            self._room -= size
        return sample

    def _substitute(self, index: int) -> TrainingSample:
        """The sample of the next usable trace after an unusable one."""
        for distance in range(1, min(len(self._traces), MAX_UNUSABLE)):
            other = (index + distance) % len(self._traces)
            sample = self._kept.get(other)
            if sample is None:
                (outcome,) = self._pool.collect(self._pool.start([self._traces[other]]))
                sample = self._taken(other, outcome)
            if sample is not None:
                self._instead[index] = other
                return sample
        (reason,) = self._pool.collect(self._pool.start([self._traces[index]]))
        raise TraceError(
            f"no trace of {min(len(self._traces), MAX_UNUSABLE)} in a row can be used; the first: {reason}"
        )
