"""Rollout worker: a vLLM engine and the retrieval environment in one process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray

from actors.frames import FramesLostError, Pixels, blocks_of, exchange
from actors.groups import EarlierCall, NewTurns, fetch_groups, fetch_turns, with_summary
from actors.rollout_runner import RolloutRunner
from actors.weight_buckets import WeightBucket, WeightsLostError, checksums
from actors.worker.label import WorkerLabel
from actors.worker.memory import own_memory_mib
from actors.worker.process import ProcessLocation, own_location
from actors.worker.turn_times import Turn, TurnTimes
from envs.rollout import TokenHistory
from rl.group_summary import GroupSummary
from rl.tracking.lanes import Interval
from rl.trajectory import Fault, TrajectoryGroup, VideoTask
from rl.weight_transfer.description import WeightTensor
from rl.weight_transfer.meeting import LinkError, MeetingPoint

DECODE_ATTEMPTS = 3  # to get lost frames from their video again


class EngineGoneError(RuntimeError):
    """The engine has died, though its worker lives."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a worker reports from time to time; beside it, as an object of its own, the turns completed since."""

    progress: int  # grows as long as the worker gets on with its work
    calls: tuple[int, ...]  # that have completed turns since the last heartbeat
    failure: str  # why the engine has died; empty while it lives


@dataclass(frozen=True, slots=True)
class WorkerHealth:
    """What a worker reports between two steps."""

    counters: Mapping[str, float]  # of the engine, since the last report
    memory_mib: float  # of this process and its children
    device_memory_mib: float  # of the engine on its accelerator; 0: it has none
    faults: tuple[Fault, ...]  # recovered from inside the worker, since the last report
    worked: tuple[Interval, ...]  # when the engine had requests, since the last report
    asleep: tuple[Turn, ...] = ()  # when it had given memory up, likewise


class RolloutWorker:
    """Rolls out whole groups with its engine and environment; async, so that groups share the engine's batch."""

    def __init__(self, make_rollout_runner: Callable[[], RolloutRunner]) -> None:
        self._label = WorkerLabel()
        self._runner = make_rollout_runner()
        self._histories: dict[int, TokenHistory] = {}  # of the groups in flight
        self._done = 0  # progress of the groups that are done
        self._asleep = TurnTimes()

    def __repr__(self) -> str:
        return str(self._label)

    async def generate(
        self,
        call: int,
        task: VideoTask,
        step: int,
        occurrence: int,
        greedily: bool,
        earlier: Sequence[EarlierCall] = (),
    ) -> tuple[GroupSummary, TrajectoryGroup, Pixels]:
        """The summary of a group of siblings (one trajectory if greedily), the group, and its pixels.

        Args:
            earlier: calls for the same group that were lost with other workers: it goes on from their turns.
        Raises:
            EngineGoneError: the engine died; another worker can roll the group out.
        """
        self._label.at(step)
        sampled = await asyncio.to_thread(fetch_turns, earlier) if earlier else {}
        history = self._histories[call] = TokenHistory(sampled)
        return with_summary(await self._rolled_out(call, history, task, step, occurrence, greedily))

    async def restore(self, call: int, held: Sequence[ray.ObjectRef]) -> tuple[GroupSummary, TrajectoryGroup, Pixels]:
        """A group with its pixels decoded again; nothing is sampled, and everything else stays as it was.

        Args:
            held: a reference to the group.
        Raises:
            GroupLostError: the group itself is lost as well.
            FramesLostError: in DECODE_ATTEMPTS attempts its video did not give the same frames.
            EngineGoneError: as in `generate`.
        """
        (group,) = await asyncio.to_thread(fetch_groups, held)
        recorded = [[turn.completion for turn in trajectory.turns] for trajectory in group.trajectories_G]
        wanted, found = blocks_of([group]).keys(), {}
        for _ in range(DECODE_ATTEMPTS):
            history = TokenHistory({sibling: (*turns, None) for sibling, turns in enumerate(recorded)})
            self._histories[call] = history
            found |= blocks_of([await self._rolled_out(call, history, group.task, 0, 0, greedily=False)])
            if wanted <= found.keys():
                return with_summary(exchange(group, found))
        raise FramesLostError(
            f"{group.task.video_path}: the frames of task {group.task.task_id} are needed once more, and in "
            f"{DECODE_ATTEMPTS} attempts the video did not give the same again"
        )

    async def _rolled_out(
        self, call: int, history: TokenHistory, task: VideoTask, step: int, occurrence: int, greedily: bool
    ) -> TrajectoryGroup:
        try:
            return await self._runner.roll_out(
                task, step=step, occurrence=occurrence, greedily=greedily, history=history
            )
        except Exception as error:
            if gone := self._runner.engine.failure():
                raise EngineGoneError(gone) from error
            raise
        finally:
            self._done += 1 + history.advances
            del self._histories[call]

    async def heartbeat(self) -> tuple[Heartbeat, NewTurns]:
        """Progress and the engine's failure if it has died; and the turns completed since the last heartbeat."""
        new_turns = {call: turns for call, history in self._histories.items() if (turns := history.take_new())}
        advances = self._done + sum(history.advances for history in self._histories.values())
        progress = advances + self._runner.progress()
        return Heartbeat(progress, tuple(new_turns), self._runner.engine.failure()), new_turns

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
        from actors.weight_packing import unpack  # torch, which the driver does without

        try:
            held = await asyncio.to_thread(self._runner.engine.load_weights, unpack(buckets), version)
        except Exception as error:
            if isinstance(error.__cause__, WeightsLostError):
                raise error.__cause__ from None
            raise
        return [name for name, sent in checksums(buckets).items() if held.get(name) != sent]

    async def sleep(self, drops_weights: bool) -> None:
        """Give the engine's GPU memory up; no request may be running.

        Args:
            drops_weights: they are not kept in main memory, and have to be pushed, all of them.
        """
        await asyncio.to_thread(self._runner.engine.sleep, drops_weights=drops_weights)
        self._asleep.gives_up("weights and KV cache")

    async def wake(self, memory: str) -> None:
        """Take a part of it back; of an engine that is awake nothing changes."""
        await asyncio.to_thread(self._runner.engine.wake, memory)
        if self._asleep.given_up:
            self._asleep.gives_up("KV cache" if memory == "weights" else "")

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
        asleep = tuple(self._asleep.take())
        return WorkerHealth(counters, memory_mib, engine.device_memory_mib(), faults, worked, asleep)


def summed(reports: Sequence[WorkerHealth]) -> dict[str, float]:
    """The metrics of all workers: counters summed, memory of the largest."""
    counters = reports[0].counters if reports else ()
    on_device_mib = max((health.device_memory_mib for health in reports), default=0.0)
    return {
        **{f"engine/{name}": sum(health.counters[name] for health in reports) for name in counters},
        "memory/rollout": max((health.memory_mib for health in reports), default=0.0),
        **({"memory/rollout_device": on_device_mib} if on_device_mib else {}),
    }
