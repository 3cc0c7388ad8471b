"""A run whose workers stand ready: what all attempts at it have in common. Part of the composition root."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console

from actors.cluster.placement import Slots
from actors.groups import load_groups
from actors.reward import RewardError, RewardPool
from actors.rollout_pool import RolloutPool
from actors.step_sampler import StepSampler
from rl.checkpoint.saver import Saver
from rl.config.run import RunConfig
from rl.group_summary import RemoteGroup
from rl.memory_plan.record import GivenUp
from rl.policy.processor import Processor
from rl.run.console.stages import say
from rl.run.writer import Writer, keep_config
from rl.tracking.backlog import Backlog
from rl.tracking.failures import FAILURES, Failure, FailureLog
from rl.tracking.faults import FAULTS, write_faults
from rl.trajectory import Fault, ScoredGroup, VideoTask

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Run:
    """Configuration, tasks, workers and files of a run; everything but its learners, which may have to be rebuilt."""

    config: RunConfig
    console: Console
    writer: Writer
    policy_dir: Path  # that reinforcement learning starts from
    slots: Slots
    saver: Saver
    tasks: Sequence[VideoTask]
    held_out: Sequence[VideoTask]
    processor: Processor
    rollouts: RolloutPool
    rewards: RewardPool
    log_file: Path  # of this start, in the run's folder
    given_up: GivenUp | None = None  # by engines and learners that take turns; None: they do not
    kernels: Mapping[str, str] | None = None  # what the bits of a deterministic run depend on
    has_begun: bool = False  # from then on the run's folder changes
    step: int = 0  # under way, counted from 1 as in metrics.jsonl
    faults: list[Fault] = field(default_factory=list)  # of the learners; workers keep their own
    values: dict[int, float] = field(default_factory=dict)  # of trainer.best_metric, by the step it was evaluated at
    backlog: Backlog = field(init=False)  # metrics, records and faults that a full disk has not taken yet
    failures: FailureLog = field(init=False)
    sampler: StepSampler = field(init=False)

    def __post_init__(self) -> None:
        self.sampler = StepSampler(
            self.rollouts,
            self.rewards,
            accept=lambda step, scored: self.accept(step + 1, scored),
            max_lag=self.config.trainer.max_policy_lag,
            settles=self.config.rollout.deterministic,
        )
        self.backlog = Backlog(self.config.trainer.max_failed_saves, self.writer.check)

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return self.writer.run_dir

    def begin(self) -> None:
        """Every worker has started and the checkpoint is loaded: the run's folder may change.

        Raises:
            ConfigError: it cannot be written.
            LeaseLostError: another process writes the run.
        """
        self.writer.check()
        if self.config.resume == "never":
            self.writer.set_aside(kept=self.log_file)
        keep_config(self.config, self.run_dir)
        self.failures = FailureLog(self.run_dir, self.backlog, self.processor.pieces, load_groups)
        self.saver.copy_earlier()
        self.has_begun = True

    def score(self, groups: Sequence[RemoteGroup], *, step: int) -> list[ScoredGroup[RemoteGroup]]:
        """Score groups, as `accept`.

        Args:
            step: as in rl.trainer, or EVALUATION_STEP; for Ray's dashboard.
        """
        scored = self.rewards.score_all(groups, step=step)
        self.accept(self.step, scored)
        return scored

    def accept(self, step: int, scored: Sequence[ScoredGroup]) -> None:
        """Take note of scores: every new cause of a failure is said at once, and all of them are in failures.jsonl.

        Args:
            step: that the groups are of, counted from 1.
        Raises:
            RewardError: as RewardPool.refuse_too_many_failures.
            UnwrittenError: too many steps in a row could not be written down.
        """
        new = self.failures.add(step, scored)
        try:
            self.rewards.refuse_too_many_failures(scored)
        except RewardError as error:
            told = [failure for failure in new if failure.cause not in str(error)]  # it names one itself
            self._say_failures(step, told)
            raise RewardError(f"{error}; {self.run_dir / FAILURES} has traceback and trajectory") from error
        self._say_failures(step, new)

    def restore(self, scored: Sequence[ScoredGroup[RemoteGroup]]) -> list[ScoredGroup[RemoteGroup]]:
        """Scored groups made again that were lost, whole or in part; other tokens than before are scored again.

        Raises:
            RolloutError: as RolloutPool.restore.
        """
        restored = self.rollouts.restore([one.group for one in scored])
        return [
            ScoredGroup(group, one.rewards_G)
            if group.summary.digests == one.group.summary.digests
            else self.rewards.score_all([group], step=self.step)[0]
            for one, group in zip(scored, restored, strict=True)
        ]

    def say_repeated_failures(self) -> None:
        """How many trajectories each cause has cost that was met more than once."""
        for failure, count in self.failures.repeated():
            say(self.console, f"masked {count} trajectories in all: {failure.cause}", style="red")

    def _say_failures(self, step: int, failures: Sequence[Failure]) -> None:
        for failure in failures:
            where = f"step {step}, {self.run_dir / FAILURES} has traceback and trajectory"
            say(self.console, f"masked {failure.count} trajectories: {failure.cause} ({where})", style="red")
            if failure.traceback:
                log.debug("%s", failure.traceback.rstrip())

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
