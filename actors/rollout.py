"""Rollout worker: a vLLM engine and the retrieval environment in one process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from actors.frames import park
from actors.rollout_runner import RolloutRunner
from actors.weight_buckets import WeightBucket, WeightsLostError, checksums, unpack
from actors.worker.label import WorkerLabel
from actors.worker.memory import own_memory_mib
from actors.worker.process import ProcessLocation, own_location
from envs.rollout import SampledTurns, TokenHistory
from rl.tracking.lanes import Interval
from rl.trajectory import Completion, Fault, TrajectoryGroup, VideoTask
from rl.weight_transfer.description import WeightTensor
from rl.weight_transfer.watch import LinkError, MeetingPoint

NewTurns = Mapping[int, list[tuple[int, int, Completion]]]  # by call: sibling, index of the turn, its completion


class EngineGoneError(RuntimeError):
    """The engine has died, though its worker lives."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a worker reports about once a second."""

    progress: int  # grows as long as the worker gets on with its work
    new_turns: NewTurns  # since the last heartbeat
    failure: str  # why the engine has died; empty while it lives


@dataclass(frozen=True, slots=True)
class WorkerHealth:
    """What a worker reports between two steps."""

    counters: Mapping[str, float]  # of the engine, since the last report
    memory_mib: float  # of this process and its children
    device_memory_mib: float  # of the engine on its accelerator; 0: it has none
    faults: tuple[Fault, ...]  # recovered from inside the worker, since the last report
    worked: tuple[Interval, ...]  # when the engine had requests, since the last report


class RolloutWorker:
    """Rolls out whole groups with its engine and environment; async, so that groups share the engine's batch."""

    def __init__(self, make_rollout_runner: Callable[[], RolloutRunner]) -> None:
        self._label = WorkerLabel()
        self._runner = make_rollout_runner()
        self._histories: dict[int, TokenHistory] = {}  # of the groups in flight
        self._done = 0  # progress of the groups that are done

    def __repr__(self) -> str:
        return str(self._label)

    async def generate(
        self, call: int, task: VideoTask, step: int, occurrence: int, greedily: bool, completions: SampledTurns
    ) -> TrajectoryGroup:
        """One group of siblings (one trajectory if greedily), its pixels parked in the object store.

        Raises:
            EngineGoneError: the engine died; another worker can roll the group out.
        """
        self._label.at(step)
        history = self._histories[call] = TokenHistory(completions)
        try:
            rolled_out = self._runner.roll_out(
                task, step=step, occurrence=occurrence, greedily=greedily, history=history
            )
            return park(await rolled_out)
        except Exception as error:
            if gone := self._runner.engine.failure():
                raise EngineGoneError(gone) from error
            raise
        finally:
            self._done += 1 + history.advances
            del self._histories[call]

    async def heartbeat(self) -> Heartbeat:
        """Progress, the turns completed since the last heartbeat, and the engine's failure if it has died."""
        new_turns = {call: turns for call, history in self._histories.items() if (turns := history.take_new())}
        advances = self._done + sum(history.advances for history in self._histories.values())
        return Heartbeat(advances + self._runner.progress(), new_turns, self._runner.engine.failure())

    async def location(self) -> ProcessLocation:
        """This process's location; answered once the engine has loaded its policy."""
        return own_location()

    async def kernels(self) -> dict[str, str]:
        """What the bits of this worker's results depend on."""
        return self._runner.engine.kernels()

    async def load_weights(self, buckets: list[WeightBucket], version: int) -> list[str]:
        """Load new weights, off the event loop so that heartbeats go on; no request may be running.

        Returns:
            Names of parameters of which the engine then holds other values than the learners: none, if all is well.
        Raises:
            WeightsLostError: they were lost with the learner that held them; the engine holds a part of them.
        """
        try:
            held = await asyncio.to_thread(self._runner.engine.load_weights, unpack(buckets), version)
        except Exception as error:
            if isinstance(error.__cause__, WeightsLostError):
                raise error.__cause__ from None
            raise
        return [name for name, sent in checksums(buckets).items() if held.get(name) != sent]

    async def sleep(self) -> None:
        """Give the engine's GPU memory up; no request may be running."""
        await asyncio.to_thread(self._runner.engine.sleep)

    async def wake(self, memory: str) -> None:
        """Take a part of it back."""
        await asyncio.to_thread(self._runner.engine.wake, memory)

    async def open_link(self, point: MeetingPoint, first_member: int) -> None:
        """Have the engine's workers meet the learner that will send weights to them.

        Raises:
            LinkError: they did not meet.
        """
        try:
            await asyncio.to_thread(self._runner.engine.open_link, point, first_member)
        except Exception as error:  # the driver needs no vLLM to read why
            raise LinkError(str(error)) from None

    async def receive_weights(self, buckets: list[tuple[WeightTensor, ...]], version: int) -> list[str]:
        """As `load_weights`, of what comes over the link.

        Raises:
            LinkError: it stopped coming; the engine holds a part of them.
        """
        try:
            return await asyncio.to_thread(self._runner.engine.receive_weights, buckets, version)
        except Exception as error:
            raise LinkError(str(error)) from None

    async def begin_profile(self) -> None:
        """Begin to record what the engine computes."""
        await asyncio.to_thread(self._runner.engine.begin_profile)

    async def write_profile(self, path: str) -> list[str]:
        """Write what has been recorded; returns the names of the files."""
        return await asyncio.to_thread(self._runner.engine.write_profile, Path(path))

    async def health(self) -> WorkerHealth:
        """Counters, memory and faults."""
        engine = self._runner.engine
        counters, faults = engine.stats(), tuple(self._runner.take_faults())
        memory_mib, worked = own_memory_mib(with_children=True), tuple(self._runner.working.take())
        return WorkerHealth(counters, memory_mib, engine.device_memory_mib(), faults, worked)
