"""Rollout workers: a vLLM engine and the retrieval environment in one process, driven as a pool."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import ray
import torch

from actors.frames import park
from actors.memory import own_memory_mib
from actors.waiting import gather
from actors.weight_buckets import WeightBucket, unpack
from envs.rollout import Surroundings, greedy, occurrences, run_group
from rl.trajectory import Completion, GenerateRequest, Sampling, TrajectoryGroup, VideoTask

log = logging.getLogger(__name__)


class RolloutError(RuntimeError):
    """A rollout worker failed or did not answer in time."""


class Engine(Protocol):
    """A policy that generates, takes over weights, and tells what it holds and did (actors.engine.VllmEngine)."""

    async def generate(self, request: GenerateRequest) -> Completion: ...

    def load_weights(self, named: Iterable[tuple[str, torch.Tensor]], version: int) -> None: ...

    def checksums(self, names: Sequence[str]) -> dict[str, str]: ...

    def stats(self) -> dict[str, float]: ...


class Player:
    """An engine and the environment around it: plays the groups of a run."""

    def __init__(
        self, engine: Engine, surroundings: Surroundings, sampling: Sampling, *, group_size: int, seed: int
    ) -> None:
        self.engine = engine
        self._surroundings = surroundings
        self._sampling = sampling
        self._group_size = group_size
        self._seed = seed

    async def play(self, task: VideoTask, *, step: int, greedily: bool, occurrence: int = 0) -> TrajectoryGroup:
        """A group of sampled siblings, or one greedy trajectory; `occurrence` as in envs.rollout.run_group."""
        return await run_group(
            task,
            group_size=1 if greedily else self._group_size,
            sampling=greedy(self._sampling) if greedily else self._sampling,
            generate=self.engine.generate,
            surroundings=self._surroundings,
            seed=self._seed,
            step=step,
            occurrence=occurrence,
        )


class RolloutWorker:
    """Plays whole groups. Holds an engine and the environment; async, so that groups share the engine's batch."""

    def __init__(self, make_player: Callable[[], Player]) -> None:
        self._player = make_player()

    async def generate(self, task: VideoTask, step: int, occurrence: int, greedily: bool) -> TrajectoryGroup:
        """One group of siblings (one trajectory if greedily), its pixels parked in the object store."""
        return park(await self._player.play(task, step=step, greedily=greedily, occurrence=occurrence))

    async def load_weights(self, buckets: list[WeightBucket], version: int) -> None:
        """Take over new weights; no request may be running."""
        self._player.engine.load_weights(unpack(buckets), version)

    async def checksums(self, names: list[str]) -> dict[str, str]:
        """sha256 of parameters as the engine holds them."""
        return self._player.engine.checksums(names)

    async def stats(self) -> dict[str, float]:
        """Engine counters since the last call, and this process's memory."""
        return {**self._player.engine.stats(), "memory_mib": own_memory_mib()}


class RolloutPool:
    """Driver's end of the rollout workers. Order in = order out."""

    def __init__(
        self,
        make_player: Callable[[], Player],
        num_workers: int,
        options: Callable[[int], Mapping[str, Any]],
        *,
        timeout_s: float,
    ) -> None:
        self._timeout_s = timeout_s
        remote = ray.remote(RolloutWorker)
        self._workers = [
            remote.options(**options(index), max_concurrency=1024).remote(make_player) for index in range(num_workers)
        ]

    def wait_ready(self, timeout_s: float) -> None:
        """Return when every engine has loaded its policy."""
        self._wait([worker.stats.remote() for worker in self._workers], timeout_s, "start")

    def generate(
        self, tasks: Sequence[VideoTask], *, step: int, attempt: int = 0, greedily: bool = False
    ) -> list[TrajectoryGroup]:
        """A group per task: sampled siblings, or one greedy trajectory.

        Args:
            attempt: 1, 2, ... for the replacements of degenerate groups: with step and task it determines the seeds.
        """
        numbers = occurrences([task.task_id for task in tasks], attempt)
        calls = [
            worker.generate.remote(task, step, number, greedily)
            for worker, task, number in zip(itertools.cycle(self._workers), tasks, numbers, strict=False)
        ]
        return self._wait(calls, self._timeout_s, f"play {len(tasks)} tasks")

    def play(
        self, tasks: Sequence[VideoTask], *, step: int, greedily: bool, in_flight: int
    ) -> Iterator[list[tuple[int, TrajectoryGroup]]]:
        """Groups as they finish, each with its task's place in `tasks`: all that are ready, at least one at a time.

        A worker gets its next task when it has finished one, so none is idle while another has a queue.

        Args:
            in_flight: tasks at a time, per worker.
        Raises:
            RolloutError: a task failed, its worker died, or nothing finished within the deadline. What else had
                finished by then is handed over first.
        """
        numbers = occurrences([task.task_id for task in tasks], attempt=0)
        waiting = iter(enumerate(tasks))
        pending: dict[ray.ObjectRef, tuple[int, Any]] = {}

        def hand_out(worker: Any) -> None:
            for place, task in itertools.islice(waiting, 1):
                pending[worker.generate.remote(task, step, numbers[place], greedily)] = (place, worker)

        for worker in self._workers * in_flight:
            hand_out(worker)
        while pending:
            finished, failure = [], None
            for call in self._wait_any(list(pending)):
                place, worker = pending.pop(call)
                try:
                    finished += [(place, *self._wait([call], self._timeout_s, f"play task {tasks[place].task_id}"))]
                except RolloutError as error:
                    failure = failure or error
                else:
                    hand_out(worker)
            if finished:
                yield finished
            if failure is not None:
                raise failure

    def load_weights(self, buckets: list[WeightBucket], version: int, *, timeout_s: float) -> None:
        """Give every engine the weights of a version."""
        calls = [worker.load_weights.remote(buckets, version) for worker in self._workers]
        self._wait(calls, timeout_s, f"load weights {version}")

    def checksums(self, names: list[str], *, timeout_s: float) -> list[dict[str, str]]:
        """Checksums of parameters, per engine."""
        return self._wait([worker.checksums.remote(names) for worker in self._workers], timeout_s, "read weights back")

    def stats(self) -> dict[str, float]:
        """Engine counters summed over workers; memory of the largest."""
        per_worker = self._wait([worker.stats.remote() for worker in self._workers], self._timeout_s, "report")
        summed = {f"engine/{name}": sum(stats[name] for stats in per_worker) for name in per_worker[0]}
        summed.pop("engine/memory_mib")
        return summed | {"memory/rollout": max(stats["memory_mib"] for stats in per_worker)}

    def _wait_any(self, calls: list[ray.ObjectRef]) -> list[ray.ObjectRef]:
        """Those that are ready, once at least one is."""
        ready, _ = ray.wait(calls, num_returns=1, timeout=self._timeout_s)
        if not ready:
            raise RolloutError(f"none of {len(calls)} tasks was finished within {self._timeout_s:g} s")
        return ray.wait(calls, num_returns=len(calls), timeout=0)[0]

    def _wait(self, calls: list[ray.ObjectRef], timeout_s: float, doing: str) -> list[Any]:
        return gather(calls, timeout_s=timeout_s, doing=doing, failure=RolloutError)
