"""A run whose workers stand ready: what all attempts at it have in common. Part of the composition root."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console

from actors.placement import Slots
from actors.reward import RewardPool
from actors.rollout_pool import RolloutPool
from rl.checkpoint.saver import Saver
from rl.config.run import RunConfig
from rl.policy.processor import Processor
from rl.tracking.backlog import Backlog
from rl.tracking.faults import FAULTS, write_faults
from rl.trajectory import Fault, VideoTask


@dataclass(slots=True)
class Run:
    """Configuration, tasks, workers and files of a run; everything but its learners, which may have to be rebuilt."""

    config: RunConfig
    console: Console
    run_dir: Path
    policy_dir: Path  # that reinforcement learning starts from
    slots: Slots
    saver: Saver
    tasks: Sequence[VideoTask]
    held_out: Sequence[VideoTask]
    processor: Processor
    rollouts: RolloutPool
    rewards: RewardPool
    step: int = 0  # under way, counted from 1 as in metrics.jsonl
    faults: list[Fault] = field(default_factory=list)  # of the learners; workers keep their own
    values: dict[int, float] = field(default_factory=dict)  # of trainer.best_metric, by the step it was evaluated at
    backlog: Backlog = field(init=False)  # metrics, records and faults that a full disk has not taken yet

    def __post_init__(self) -> None:
        self.backlog = Backlog(self.config.trainer.max_failed_saves)

    def take_faults(self, *, unfinished: bool = False) -> list[Fault]:
        """What broke and was recovered since the last call of this method, wherever it was noticed."""
        own, self.faults = self.faults, []
        workers = self.rollouts.workers.take_faults(unfinished=unfinished)
        faults = [*own, *workers, *self.rewards.take_faults(), *self.saver.take_faults(), *self.backlog.take_faults()]
        return sorted(faults, key=lambda fault: fault.detected_s)

    def put_faults(self, step: int, faults: Sequence[Fault]) -> None:
        """Write faults into faults.jsonl with what is written next."""
        if faults:
            self.backlog.put(self.run_dir / FAULTS, partial(write_faults, self.run_dir, step, faults))
