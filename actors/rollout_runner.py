"""The rollout runner: an engine and the environment around it, in one process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from actors.worker.working_time import WorkingTime
from envs.rollout import EpisodeContext, Generate, TokenHistory, greedy, run_group
from rl.trajectory import Completion, Fault, GenerateRequest, Sampling, TrajectoryGroup, VideoTask
from rl.weight_transfer.description import WeightTensor
from rl.weight_transfer.meeting import MeetingPoint

if TYPE_CHECKING:
    import torch


class Engine(Protocol):
    """An inference engine: generates, loads weights, reports counters and memory (actors.engine.engine.VllmEngine)."""

    async def generate(self, request: GenerateRequest) -> Completion: ...

    def load_weights(self, named: Iterable[tuple[str, torch.Tensor]], version: int) -> dict[str, str]: ...

    def sleep(self) -> None: ...

    def wake(self, memory: str) -> None: ...

    def open_link(self, point: MeetingPoint, first_member: int) -> None: ...

    def receive_weights(self, buckets: Sequence[Sequence[WeightTensor]], version: int) -> list[str]: ...

    def stats(self) -> dict[str, float]: ...

    def device_memory_mib(self) -> float: ...

    def progress(self) -> int: ...

    def failure(self) -> str: ...


class RolloutRunner:
    """Rolls out the groups of a run."""

    def __init__(
        self, engine: Engine, episode_context: EpisodeContext, sampling: Sampling, *, group_size: int, seed: int
    ) -> None:
        self.engine = engine
        self._episode_context = episode_context
        self._sampling = sampling
        self._group_size = group_size
        self.working = WorkingTime()  # of the engine: requests are in it
        self._seed = seed

    async def roll_out(
        self,
        task: VideoTask,
        *,
        step: int,
        greedily: bool,
        occurrence: int = 0,
        history: TokenHistory | None = None,
        generate: Generate | None = None,
    ) -> TrajectoryGroup:
        """A group of sampled siblings, or one greedy trajectory; `occurrence` and `history` as in run_group.

        Args:
            generate: what stands before the engine; None: the engine itself.
        """
        return await run_group(
            task,
            group_size=1 if greedily else self._group_size,
            sampling=greedy(self._sampling) if greedily else self._sampling,
            generate=generate or self._generate,
            episode_context=self._episode_context,
            seed=self._seed,
            step=step,
            occurrence=occurrence,
            history=history,
        )

    async def _generate(self, request: GenerateRequest) -> Completion:
        with self.working:
            return await self.engine.generate(request)

    def progress(self) -> int:
        """A number that grows as long as the engine, or a decoding process, gets on with its work."""
        return self.engine.progress() + self._episode_context.reader.progress()

    def take_faults(self) -> list[Fault]:
        """Faults of the environment recovered from since the last call of this method."""
        return self._episode_context.reader.take_faults()
