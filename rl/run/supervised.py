"""Supervised training, run: the cold start and `dynframe finetune` are stages of it.

Part of the composition root. A stage is learned from a checkpoint, or the start, to its last step with one set of
learners (`SupervisedAttempt`); when one is lost, the next attempt goes on from the newest checkpoint (`until_done`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from actors.cluster.placement import Slots
from actors.learner_group import LearnerGroup
from actors.pending_write import LearnerError
from actors.sft_samples import SampleError, SampleFeed, SamplePool
from rl.checkpoint.checkpoint import Checkpoint
from rl.checkpoint.saver import Contents, Saver
from rl.config.file import to_yaml
from rl.config.learner import OptimizerConfig
from rl.config.run import RunConfig, without_reference
from rl.learner.sft import SftLosses, run_sft
from rl.run.console.stages import stage
from rl.run.prepare.encoder import Example
from rl.run.workers import spawn_learners, spawn_samples
from rl.trajectory import RunState

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SupervisedStage:
    """What is learned, from which policy on."""

    name: str  # "cold start"
    config: RunConfig
    policy_dir: Path
    examples: Sequence[Example]
    optimizer: OptimizerConfig
    steps: int
    batch_size: int
    seed: int  # of the order of examples
    save_every: int  # steps between two checkpoints; 0: none on the way
    saves_last: bool  # a checkpoint of the last step, too
    num_ranks: int
    max_tokens: int  # of a sample
    num_workers: int  # that encode examples
    kind: str  # of the ranks, as in Slots.options

    def is_saved(self, step: int) -> bool:
        """Whether a checkpoint is due after so many steps."""
        if step == self.steps:
            return self.saves_last
        return self.save_every > 0 and step % self.save_every == 0


class SupervisedAttempt:
    """A stage from a checkpoint, or its start, to its last step with one set of learners."""

    def __init__(
        self, stage: SupervisedStage, learners: LearnerGroup, pool: SamplePool, saver: Saver | None, first: int
    ) -> None:
        """
        Args:
            saver: None: nothing is saved.
            first: steps that were taken before.
        """
        self.learners, self.pool, self.reached = learners, pool, first
        self._stage, self._saver, self._first = stage, saver, first
        self._feed = SampleFeed(pool, stage.examples)

    @property
    def skipped(self) -> int:
        """Examples of the last batch that cannot be used, and that others stood in for."""
        return self._feed.skipped

    @property
    def batch_digest(self) -> str:
        """Of the samples of the last batch (rl.tracking.fingerprint.samples_digest)."""
        return self._feed.digest

    def train(self, after_step: Callable[[int, Mapping[str, float]], float | None]) -> SftLosses:
        """Take the steps that are left.

        Args:
            after_step: called with (steps done, the step's metrics); what the policy is worth now by
                `trainer.best_metric`, where that is known.
        """
        stage, saver = self._stage, self._saver

        def done(step: int, metrics: Mapping[str, float]) -> None:
            self.reached = step
            value = after_step(step, metrics)
            if saver and (stage.is_saved(step) or (value is not None and saver.is_best(step, value))):
                self.save(value)

        return run_sft(
            self.learners,
            self._feed.samples,
            num_samples=len(stage.examples),
            steps=stage.steps,
            batch_size=stage.batch_size,
            seed=stage.seed,
            after_step=done,
            first=self._first,
        )

    def save(self, value: float | None = None) -> None:
        """A checkpoint of the step that was reached, written while the stage goes on."""
        state = RunState(self.reached, 0, self._stage.seed)
        self._saver.save(self.learners.save, Contents(state, to_yaml(self._stage.config), value))


@contextmanager
def supervised_attempt(
    given: SupervisedStage, slots: Slots, console: Console, saver: Saver | None, found: Checkpoint | None
) -> Iterator[SupervisedAttempt]:
    """Learners at the state of a checkpoint, or at the start, and workers that encode; killed in the end.

    Raises:
        LearnerError: a rank was lost. What was saved stays for the next attempt.
        SampleError: no example is usable, or a worker that encodes them was lost.
    """
    with ExitStack() as workers:
        pool = spawn_samples(given.config, given.policy_dir, given.num_workers, given.max_tokens)
        workers.callback(pool.stop)
        with stage(console, f"starting {given.num_ranks} learners for the {given.name}"):
            learners = spawn_learners(
                without_reference(given.config),  # supervision has no use for it
                given.policy_dir,
                slots,
                optimizer=given.optimizer,
                total_updates=given.steps,
                kind=given.kind,
                num_ranks=given.num_ranks,
            )
        workers.callback(learners.stop)
        if found is not None:
            with stage(console, f"continuing the {given.name} at step {found.state.step}"):
                learners.load(found.folder)
        yield SupervisedAttempt(given, learners, pool, saver, found.state.step if found else 0)


def until_done(name: str, attempt: Callable[[Callable[[], None]], None], max_rebuilds: int) -> None:
    """Attempt after attempt at a stage: a worker that is lost is replaced, with all others.

    Args:
        attempt: raises LearnerError or SampleError where workers are lost; calls what it is given after every step.
        max_rebuilds: attempts in a row that may fail after a step at least; one that fails before its first step would
            fail again.
    """
    steps = rebuilds = 0

    def took_step() -> None:
        nonlocal steps
        steps += 1

    while True:
        steps = 0
        try:
            return attempt(took_step)
        except (LearnerError, SampleError) as error:
            rebuilds += 1
            if not steps or rebuilds > max_rebuilds:
                raise
            log.warning("a worker of the %s is lost, it goes on from its last checkpoint: %s", name, error)
