"""Rollout worker: a vLLM engine and the retrieval environment in one process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import ray

from actors.frames import park
from actors.memory import own_memory_mib
from actors.rollout_runner import RolloutRunner
from actors.stall_detector import Whereabouts
from actors.weight_buckets import WeightBucket, WeightsLostError, unpack
from envs.rollout import SampledTurns, TokenHistory
from rl.trajectory import Completion, Fault, TrajectoryGroup, VideoTask

News = Mapping[int, list[tuple[int, int, Completion]]]  # by call: sibling, number of the turn, what was said


class EngineGoneError(RuntimeError):
    """The engine will not answer any more, though its worker lives."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """A sign of life."""

    progress: int  # grows as long as the worker gets on
    news: News  # since the last pulse
    failure: str  # why the engine will not answer any more; empty while it lives


@dataclass(frozen=True, slots=True)
class Condition:
    """How a worker is, between two steps."""

    counters: Mapping[str, float]  # of the engine, since the last time
    memory_mib: float  # of this process and those it started
    device_memory_mib: float  # of the engine on its accelerator; 0: it has none
    faults: tuple[Fault, ...]  # what broke in it and was mended, since the last time


class RolloutWorker:
    """Plays whole groups. Holds an engine and the environment; async, so that groups share the engine's batch."""

    def __init__(self, make_rollout_runner: Callable[[], RolloutRunner]) -> None:
        self._runner = make_rollout_runner()
        self._histories: dict[int, TokenHistory] = {}  # of the groups being played
        self._done = 0  # progress of those that were

    async def generate(
        self, call: int, task: VideoTask, step: int, occurrence: int, greedily: bool, said: SampledTurns
    ) -> TrajectoryGroup:
        """One group of siblings (one trajectory if greedily), its pixels parked in the object store.

        Raises:
            EngineGoneError: the engine died; another worker can play the group.
        """
        history = self._histories[call] = TokenHistory(said)
        try:
            played = self._runner.play(task, step=step, occurrence=occurrence, greedily=greedily, history=history)
            return park(await played)
        except Exception as error:
            if gone := self._runner.engine.failure():
                raise EngineGoneError(gone) from error
            raise
        finally:
            self._done += 1 + history.advances
            del self._histories[call]

    async def pulse(self) -> Pulse:
        """Life, and what was said since the last one."""
        news = {call: turns for call, history in self._histories.items() if (turns := history.take_new())}
        advances = self._done + sum(history.advances for history in self._histories.values())
        return Pulse(advances + self._runner.engine.progress(), news, self._runner.engine.failure())

    async def whereabouts(self) -> Whereabouts:
        """Answered once the engine has loaded its policy."""
        return Whereabouts(ray.get_runtime_context().get_node_id(), os.getpid())

    async def load_weights(self, buckets: list[WeightBucket], version: int) -> None:
        """Take over new weights; no request may be running. Off the event loop, so that the pulse goes on.

        Raises:
            WeightsLostError: they are gone with the learner that held them; the engine holds a part of them.
        """
        try:
            await asyncio.to_thread(self._runner.engine.load_weights, unpack(buckets), version)
        except Exception as error:
            if isinstance(error.__cause__, WeightsLostError):
                raise error.__cause__ from None
            raise

    async def checksums(self, names: list[str]) -> dict[str, str]:
        """sha256 of parameters as the engine holds them."""
        return await asyncio.to_thread(self._runner.engine.checksums, names)

    async def condition(self) -> Condition:
        """Counters, memory and faults."""
        engine = self._runner.engine
        counters, faults = engine.stats(), tuple(self._runner.take_faults())
        return Condition(counters, own_memory_mib(with_children=True), engine.device_memory_mib(), faults)
