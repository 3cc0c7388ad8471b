"""`dynframe finetune`: a supervised run, composed: prepare, check, spawn, resume, learn, evaluate, report.

It leaves what any run leaves: metrics, checkpoints, a summary, and goes on where it was stopped.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from actors.cluster.placement import Demand, Slots
from actors.pending_write import LearnerError
from actors.sft_samples import SampleError
from rl.checkpoint.checkpoint import Checkpoint
from rl.checkpoint.manifest import CheckpointError
from rl.checkpoint.saver import Saver
from rl.config.run import RunConfig
from rl.run.console.stages import progress_bar, say, stage
from rl.run.console.step_line import Pace, held_out_loss_line, supervised_line
from rl.run.preflight.finetune import preflight_finetune, without_engines
from rl.run.prepare.conversations import Examples, prepare_examples, require_conversation_sources
from rl.run.prepare.encoder import Example
from rl.run.prepare.policy import prepare_policy, require_no_open_thought
from rl.run.recomputation import with_recomputation
from rl.run.reporter import make_sinks
from rl.run.stop_signals import StopRequested, StopSignals
from rl.run.supervised import SupervisedAttempt, SupervisedStage, supervised_attempt, until_done
from rl.run.train import run_from_newest
from rl.run.workers import cluster
from rl.run.writer import Writer, keep_config
from rl.tracking.backlog import Backlog
from rl.tracking.disk_space import disk_metrics
from rl.tracking.faults import FAULTS, fault_metrics, write_faults
from rl.tracking.fingerprint import supervised_fingerprints
from rl.tracking.held_out import held_out_loss
from rl.tracking.log_file import keep_log
from rl.tracking.sinks import MetricLog
from rl.tracking.summary import is_evaluated
from rl.trainer import is_due
from rl.trajectory import Fault

log = logging.getLogger(__name__)

NAME = "fine-tuning"


def run_finetuning(config: RunConfig, console: Console) -> dict[str, Any]:
    """Run to `trainer.steps`; returns the summary, which also lies in summary.json.

    Raises:
        ConfigError: the configuration cannot work here; nothing has been started.
        StopRequested: a signal came; the run is saved, and goes on when it is started again.
    """
    require_conversation_sources(config)
    config = without_engines(config)
    preflight_finetune(config)
    return run_from_newest(config, console, _finetune_from)


def _finetune_from(
    found: Checkpoint | None, config: RunConfig, console: Console, writer: Writer, open_saver: Callable[[], Saver]
) -> None:
    """Data, policy, workers; then the steps from a checkpoint, or from the start."""
    examples = prepare_examples(config, console)
    with stage(console, "preparing the policy"):
        policy_dir = prepare_policy(config, console)
    require_no_open_thought(config, policy_dir)
    config = with_recomputation(config, policy_dir, found, partial(say, console))
    demand = Demand(rollout=0, reward=0, learner=config.learner.num_ranks)
    signals = StopSignals(config.trainer.stop_grace_s)
    with ExitStack() as stack:
        log_file = stack.enter_context(keep_log(writer.run_dir))
        say(console, f"all that is logged: {log_file}")
        slots = stack.enter_context(cluster(config, policy_dir, console, demand))
        stack.enter_context(signals)
        saver = stack.enter_context(open_saver())
        backlog = stack.enter_context(Backlog(config.trainer.max_failed_saves, writer.check))
        run = FinetuningRun(config, console, writer, policy_dir, slots, saver, backlog, examples, signals, log_file)
        run.learn(found)


@dataclass(slots=True)
class FinetuningRun:
    """A run whose data and policy are ready; everything but its learners, which may have to be rebuilt."""

    config: RunConfig
    console: Console
    writer: Writer
    policy_dir: Path
    slots: Slots
    saver: Saver
    backlog: Backlog
    examples: Examples
    signals: StopSignals
    log_file: Path  # of this start, in the run's folder
    has_begun: bool = field(default=False, init=False)
    lost: Fault | None = field(default=None, init=False)  # learners that are not rebuilt yet
    faults: list[Fault] = field(default_factory=list, init=False)

    def learn(self, found: Checkpoint | None) -> None:
        """Attempt after attempt, to the last step.

        Raises:
            LearnerError, SampleError: workers were lost too often.
            StopRequested: a signal came; the run is saved at the step it had reached.
        """

        def attempt(took_step: Callable[[], None]) -> None:
            self.saver.drain()
            try:
                self._attempt(self.saver.newest() or found, took_step)
            except (LearnerError, SampleError) as error:
                self.lost = self.lost or Fault(
                    "learner_lost", "learner", str(error), "", time.time(), 0.0, error.failure
                )
                raise

        until_done(NAME, attempt, self.config.learner.max_rebuilds)

    def _attempt(self, found: Checkpoint | None, took_step: Callable[[], None]) -> None:
        resumed = found.state.step if found else -1
        with ExitStack() as stack:
            under_way = stack.enter_context(
                supervised_attempt(self._stage(), self.slots, self.console, self.saver, found)
            )
            self._begin()
            self._recovered(found)
            sinks = make_sinks(self.config, self.writer.run_dir, self.backlog, self.console, keep_through_step=resumed)
            numbers = stack.enter_context(closing(MetricLog(sinks)))
            reporter = stack.enter_context(FinetuningReporter(self, under_way, numbers))
            self._steps(under_way, reporter, took_step, resumed)
            with stage(self.console, "saving the last checkpoint"):
                self.saver.flush()  # the ranks write it, and end with the attempt

    def _steps(
        self,
        under_way: SupervisedAttempt,
        reporter: FinetuningReporter,
        took_step: Callable[[], None],
        resumed: int,
    ) -> None:
        def after_step(step: int, metrics: Mapping[str, float]) -> float | None:
            took_step()
            reporter.step(step, metrics)
            value = reporter.evaluate(step) if is_due(step, trainer.eval_every, trainer.steps) else None
            self.writer.check()
            if step < trainer.steps:
                self.signals.check()
            return value

        trainer, first = self.config.trainer, under_way.reached
        try:
            if first == 0 or (is_due(first, trainer.eval_every, trainer.steps) and not self._is_evaluated(first)):
                reporter.evaluate(first)
            if first < trainer.steps:
                under_way.train(after_step)
        except StopRequested:
            self._save_reached(under_way, resumed)
            raise

    def _is_evaluated(self, step: int) -> bool:
        return is_evaluated(self.writer.run_dir, step)

    def _save_reached(self, under_way: SupervisedAttempt, resumed: int) -> None:
        """What the learners hold is on the disk; if a save of it has failed, there is another one."""
        try:
            self.saver.flush()
        except CheckpointError as error:
            log.warning("%s", error)
        if under_way.reached > max(0, resumed) and not self.saver.has_published(under_way.reached):
            under_way.save()
            self.saver.flush()

    def _recovered(self, found: Checkpoint | None) -> None:
        """Learners that were lost are there again."""
        if self.lost is not None:
            action = f"rebuilt from the checkpoint of step {found.state.step}" if found else "rebuilt at the start"
            self.faults.append(replace(self.lost, action=action, recovery_s=time.time() - self.lost.detected_s))
            self.lost = None

    def take_faults(self) -> list[Fault]:
        """What broke and was recovered since the last call of this method."""
        own, self.faults = self.faults, []
        return [*own, *self.saver.take_faults(), *self.backlog.take_faults()]

    def _begin(self) -> None:
        """Every worker has started and the checkpoint is loaded: the run's folder may change."""
        if self.has_begun:
            return
        self.writer.check()
        if self.config.resume == "never":
            self.writer.set_aside(kept=self.log_file)
        keep_config(self.config, self.writer.run_dir)
        self.saver.copy_earlier()
        self.has_begun = True

    def _stage(self) -> SupervisedStage:
        config = self.config
        return SupervisedStage(
            name=NAME,
            config=config,
            policy_dir=self.policy_dir,
            examples=self.examples.train,
            optimizer=config.learner.optimizer,
            steps=config.trainer.steps,
            batch_size=config.finetune.batch_size,
            seed=config.seed,
            save_every=config.trainer.save_every,
            saves_last=True,
            num_ranks=config.learner.num_ranks,
            max_tokens=config.finetune.max_tokens,
            num_workers=config.finetune.num_workers,
            kind="learner",
        )


class FinetuningReporter:
    """What is said after each step and evaluation: metrics to sinks, a line of progress."""

    def __init__(self, run: FinetuningRun, under_way: SupervisedAttempt, numbers: MetricLog) -> None:
        self._run, self._under_way, self._numbers = run, under_way, numbers
        self._pace, self._last_s = Pace(), time.perf_counter()
        self._bars = progress_bar(run.console)
        self._bar = self._bars.add_task(NAME, total=run.config.trainer.steps, completed=under_way.reached)

    def __enter__(self) -> FinetuningReporter:
        self._bars.start()
        self._last_s = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report one step."""
        run, steps = self._run, self._run.config.trainer.steps
        now_s = time.perf_counter()
        seconds, self._last_s = now_s - self._last_s, now_s
        if faults := run.take_faults():
            run.backlog.put(run.writer.run_dir / FAULTS, partial(write_faults, run.writer.run_dir, step, faults))
        numbers = {
            **metrics,
            **run.saver.poll(),
            **fault_metrics(faults),
            "data/skipped": float(self._under_way.skipped),
            "memory/learner": self._under_way.learners.memory_mib(),
            **disk_metrics(run.writer.run_dir),
            "seconds/step": seconds,
            "seconds/wait": max(0.0, seconds - metrics["update/seconds"]),
        }
        self._numbers.write(step, numbers, self._fingerprints(step, metrics))
        self._bars.update(self._bar, completed=step)
        eta_s = self._pace.step_done(seconds) * (steps - step)
        say(run.console, supervised_line(step, steps, numbers, eta_s=eta_s))

    def _fingerprints(self, step: int, metrics: Mapping[str, float]) -> dict[str, str]:
        """What `dynframe verify-resume` compares."""
        every, learners = self._run.config.learner.digest_every, self._under_way.learners
        optimizer = learners.optimizer_digest() if every and step % every == 0 else ""
        return supervised_fingerprints(self._under_way.batch_digest, metrics, optimizer=optimizer)

    def evaluate(self, step: int) -> float | None:
        """The held-out loss after so many steps; None: nothing is held out."""
        run, chosen = self._run, self._run.examples.held_out
        if not chosen:
            return None
        with stage(run.console, f"evaluating on {len(chosen):,} held-out examples after step {step}"):
            losses = self._losses([example for _, example in chosen])
        metrics = held_out_loss([name for name, _ in chosen], losses)
        self._numbers.write(step, metrics)
        say(run.console, held_out_loss_line(step, metrics))
        self._last_s = time.perf_counter()  # it is no part of the next step
        return metrics["held_out/nll"] if math.isfinite(metrics["held_out/nll"]) else None

    def _losses(self, examples: Sequence[Example]) -> list[tuple[float, int] | None]:
        """Of each example; None where it cannot be used. A batch at a time: their pixels are in memory together."""
        size, losses = self._run.config.finetune.batch_size, []
        for first in range(0, len(examples), size):
            pool = self._under_way.pool
            made = pool.collect(pool.start(examples[first : first + size]))
            usable = iter(self._under_way.learners.losses([sample for sample in made if not isinstance(sample, str)]))
            losses += [None if isinstance(sample, str) else next(usable) for sample in made]
        return losses
