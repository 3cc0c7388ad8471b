"""Sample workers: conversations and retrieval traces encoded in parallel, pixels left in the object store."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import ray

from actors.frames import park
from actors.worker.process import ProcessLocation, WorkerProcess, own_location
from actors.worker.waiting import WorkerError, gather
from envs.data.rows import UnusableRow
from rl.tracking.fingerprint import samples_digest
from rl.trajectory import TrainingSample

log = logging.getLogger(__name__)

Example = TypeVar("Example")  # what a sample is made from: a conversation, a trace

CHUNK = 16  # examples per remote call at most: enough to hide the call's overhead
KEPT_BYTES = 256 * 2**20  # of pixels kept in the object store for the next epoch
MAX_UNUSABLE = 64  # examples in a row; beyond it the data set is at fault


class SampleError(WorkerError):
    """No example is usable, or a worker failed or did not answer in time."""


class SampleWorker:
    """Encodes examples: reads their images, decodes their videos."""

    def __init__(self, make_encode: Callable[[], Callable[[Example], TrainingSample]]) -> None:
        """
        Args:
            make_encode: makes what encodes one example, raising UnusableRow where that cannot be done.
        """
        self._encode = make_encode()

    def location(self) -> ProcessLocation:
        """Of this process."""
        return own_location()

    def encode(self, examples: list[Example]) -> list[TrainingSample | str]:
        """A sample of each example, or why it cannot be used."""
        return [self._encoded(example) for example in examples]

    def _encoded(self, example: Example) -> TrainingSample | str:
        try:
            return park(self._encode(example))
        except UnusableRow as error:
            return str(error)


class SamplePool:
    """Driver's end of the sample workers, which own the pixels they decoded: keep the pool while those are used."""

    def __init__(
        self,
        make_encode: Callable[[], Callable[[Example], TrainingSample]],
        num_workers: int,
        options: Callable[[int], Mapping[str, Any]],
        *,
        timeout_s: float,
    ) -> None:
        self._timeout_s = timeout_s
        remote, named = ray.remote(SampleWorker), [options(index) for index in range(num_workers)]
        self._workers = [remote.options(**given).remote(make_encode) for given in named]
        self._processes = [
            WorkerProcess(given["name"], worker.location.remote())
            for given, worker in zip(named, self._workers, strict=True)
        ]
        self._turn = itertools.cycle(zip(self._workers, self._processes, strict=True))
        self._asked: dict[ray.ObjectRef, WorkerProcess] = {}  # by call, until it is collected

    def start(self, examples: Sequence[Example]) -> list[ray.ObjectRef]:
        """Start to encode examples, spread over the workers; returns at once, with calls for `collect`."""
        size = max(1, min(CHUNK, math.ceil(len(examples) / len(self._workers))))
        chunks = [list(examples[i : i + size]) for i in range(0, len(examples), size)]
        calls = []
        for chunk, (worker, process) in zip(chunks, self._turn, strict=False):
            calls.append(worker.encode.remote(chunk))
            self._asked[calls[-1]] = process
        return calls

    def collect(self, calls: Sequence[ray.ObjectRef]) -> list[TrainingSample | str]:
        """Results of started examples, in order: a sample, or why the example cannot be used.

        Raises:
            SampleError: a worker died, or a chunk took longer than the timeouts of its examples together.
        """
        return [outcome for call in calls for outcome in self._collect(call)]

    def stop(self) -> None:
        """End the workers; the pixels go with them."""
        for worker in self._workers:
            ray.kill(worker, no_restart=True)

    def _collect(self, call: ray.ObjectRef) -> list[TrainingSample | str]:
        (outcomes,) = gather(
            [call],
            timeout_s=self._timeout_s * CHUNK,
            doing="encode examples",
            failure=SampleError,
            processes=[self._asked.pop(call)],
        )
        return outcomes


@dataclass(frozen=True, slots=True)
class _SampleBatch:
    """A batch whose missing samples are being made."""

    indices: tuple[int, ...]  # as they were drawn
    wanted: tuple[int, ...]  # with the usable ones that stand in for others
    missing: tuple[int, ...]  # of them, those that are not kept
    calls: list[ray.ObjectRef]


class SampleFeed:
    """Examples by index as SFT samples, encoded when needed, one batch ahead of the trainer.

    An unusable example is logged and replaced by the next usable one. Samples are kept for the next epoch while their
    pixels fit in a budget; beyond it examples are encoded again, with the same outcome.
    """

    def __init__(self, pool: SamplePool, examples: Sequence[Example], budget_bytes: int = KEPT_BYTES) -> None:
        self._pool, self._examples, self._room = pool, examples, budget_bytes
        self._kept: dict[int, TrainingSample] = {}
        self._instead: dict[int, int] = {}  # unusable example -> the next usable one
        self.skipped = 0  # unusable examples that others stood in for, in the batch that was given last
        self.digest = ""  # of that batch

    def samples(self, batches: Iterable[Sequence[int]]) -> Iterator[list[TrainingSample]]:
        """The samples of each batch, in order; the next batch is being made meanwhile.

        Raises:
            SampleError: many examples in a row cannot be used, or a worker failed.
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
        calls = self._pool.start([self._examples[index] for index in missing])
        return _SampleBatch(tuple(indices), wanted, missing, calls)

    def _finish(self, batch: _SampleBatch) -> list[TrainingSample]:
        made = zip(batch.missing, self._pool.collect(batch.calls), strict=True)
        fresh = {index: self._taken(index, outcome) for index, outcome in made}
        samples = [fresh.get(index) or self._kept.get(index) or self._substitute(index) for index in batch.wanted]
        self.skipped = sum(index in self._instead for index in batch.indices)
        self.digest = samples_digest(samples)
        return samples

    def _taken(self, index: int, sample: TrainingSample | str) -> TrainingSample | None:
        """A sample, kept if there is room; None if its example cannot be used."""
        if isinstance(sample, str):
            log.warning("example left out: %s", sample)
            return None
        size = sum(block.num_frames * block.height * block.width * 3 for block in sample.videos)
        if index not in self._kept and size <= self._room:
            self._kept[index] = sample
            self._room -= size
        return sample

    def _substitute(self, index: int) -> TrainingSample:
        """The sample of the next usable example after an unusable one."""
        for distance in range(1, min(len(self._examples), MAX_UNUSABLE)):
            other = (index + distance) % len(self._examples)
            sample = self._kept.get(other)
            if sample is None:
                (outcome,) = self._pool.collect(self._pool.start([self._examples[other]]))
                sample = self._taken(other, outcome)
            if sample is not None:
                self._instead[index] = other
                return sample
        (reason,) = self._pool.collect(self._pool.start([self._examples[index]]))
        raise SampleError(
            f"no example of {min(len(self._examples), MAX_UNUSABLE)} in a row can be used; the first: {reason}"
        )
