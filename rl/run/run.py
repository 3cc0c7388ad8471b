"""A run whose workers stand ready, leg by leg. Part of the composition root.

A leg is what one set of learners does: from a checkpoint, or the start, to the last step. Learners that are lost end
it; the next leg starts from the newest checkpoint with learners built anew, and repeats the steps since. Engines and
reward workers mend themselves within a leg.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from actors.learner import LearnerError, LearnerGroup
from actors.placement import Slots
from actors.reward import RewardPool
from actors.rollout_pool import RolloutPool
from actors.weight_buckets import WeightsLostError
from actors.weight_sync import WeightSync
from envs.data.dataset import tasks_for_step
from rl.checkpoint.manifest import CheckpointError
from rl.checkpoint.saver import Contents, Saver
from rl.checkpoint.store import Checkpoint
from rl.config.file import to_yaml
from rl.config.run import RunConfig
from rl.policy.processor import Processor
from rl.run.prepare import progress_bar
from rl.run.reporter import Reporter, keep_step, make_sinks
from rl.run.stop_signals import StopRequested
from rl.run.workers import spawn_learners
from rl.tracking.backlog import Backlog
from rl.tracking.faults import FAULTS, fault_metrics, write_faults
from rl.tracking.held_out import EVALUATION_STEP, held_out_metrics
from rl.tracking.records import records
from rl.tracking.sinks import MetricLog
from rl.tracking.summary import is_evaluated
from rl.trainer import Schedule, is_due, train
from rl.trajectory import Fault, LearnerUpdate, RunState, ScoredGroup, VideoTask

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Run:
    """What all legs have in common."""

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

    def train(self, found: Checkpoint | None) -> None:
        """From a checkpoint, or the start, to the last step.

        Raises:
            LearnerError: learners were lost more than learner.max_rebuilds times without getting any further, or never
                came up.
            StopRequested: a signal came; the run is saved at the step it had reached.
            UnwrittenError: metrics, records or faults could not be written for too many steps in a row, or at the end.
        """
        with self.backlog:
            try:
                self._legs(found)
            finally:
                self.backlog.retry()  # what is mended by it is among the faults
                self.put_faults(self.step, self.take_faults(unfinished=True))

    def take_faults(self, *, unfinished: bool = False) -> list[Fault]:
        """What broke and was mended since the last call of this method, whoever met it."""
        own, self.faults = self.faults, []
        crew = self.rollouts.crew.take_faults(unfinished=unfinished)
        faults = [*own, *crew, *self.rewards.take_faults(), *self.saver.take_faults(), *self.backlog.take_faults()]
        return sorted(faults, key=lambda fault: fault.detected_s)

    def put_faults(self, step: int, faults: Sequence[Fault]) -> None:
        """Write faults into faults.jsonl with what is written next."""
        if faults:
            self.backlog.put(self.run_dir / FAULTS, partial(write_faults, self.run_dir, step, faults))

    def _legs(self, found: Checkpoint | None) -> None:
        lost, came_up, furthest, rebuilds = None, False, 0, 0
        while True:
            try:
                with self._learners(found) as learners:
                    came_up = True
                    if lost is not None:
                        self._record_return(lost, found)
                        lost = None
                    Leg(self, learners, found).go()
                return
            except (LearnerError, WeightsLostError) as error:
                furthest, rebuilds = max(furthest, self.step), rebuilds + 1 if self.step <= furthest else 1
                if not came_up or rebuilds > self.config.learner.max_rebuilds:
                    raise
                lost = self._lose_learners(error, lost)
                self.saver.drain()
                found = self.saver.newest() or found

    @contextmanager
    def _learners(self, found: Checkpoint | None) -> Iterator[LearnerGroup]:
        """Learner ranks at the state of a checkpoint, or at the start; killed in the end, whatever happens."""
        config = self.config
        learners = spawn_learners(
            config,
            self.policy_dir,
            self.slots,
            optimizer=config.learner.optimizer,
            total_updates=config.trainer.steps * config.learner.updates_per_step,
            attend=self.rollouts.crew.attend,
            restore=self.rollouts.restore,
        )
        try:
            if found:
                learners.load(found.folder)
                self.console.print(f"resumed at step {found.state.step} from {found.folder}", highlight=False)
            yield learners
        finally:
            learners.stop()

    def _lose_learners(self, error: Exception, before: Fault | None) -> Fault:
        log.warning("learners are lost and built anew from the newest checkpoint: %s", error)
        return before or Fault("learner_lost", "learner", str(error), "", time.time(), 0.0)

    def _record_return(self, lost: Fault, found: Checkpoint | None) -> None:
        step = found.state.step if found else 0
        seconds = time.time() - lost.detected_s
        log.warning("learners are back after %.1f s, at step %d", seconds, step)
        action = f"built anew from the checkpoint of step {step}" if found else "built anew at the start"
        self.faults.append(replace(lost, action=action, recovery_s=seconds))


class Leg:
    """From a checkpoint, or the start, to the last step, with one set of learners."""

    def __init__(self, run: Run, learners: LearnerGroup, found: Checkpoint | None) -> None:
        self._run, self._config, self._learners = run, run.config, learners
        self._reached = found.state if found else RunState(step=0, policy_version=0, seed=run.config.seed)
        self._resumed, run.step = self._reached.step if found else -1, self._reached.step + 1
        self._weights = WeightSync(learners, run.rollouts.crew, run.config.weight_sync, self._reached.policy_version)

    def go(self) -> None:
        """The loop of rl.trainer.

        Raises:
            StopRequested: as Run.train.
        """
        sinks = make_sinks(self._config, self._run.run_dir, self._run.backlog, keep_through_step=self._resumed)
        with closing(MetricLog(sinks)) as numbers, progress_bar(self._run.console) as progress:
            try:
                self._train(numbers, progress)
            except StopRequested:
                self._save_reached()
                raise
            self._run.saver.flush()  # the ranks write it, and end with the leg

    def _train(self, numbers: MetricLog, progress: Progress) -> None:
        run, trainer, first = self._run, self._config.trainer, self._reached.step
        reporter = Reporter(self._config, run.run_dir, numbers, run.backlog, progress, first, run.processor)

        def report(
            step: int, scored: Sequence[ScoredGroup], learned: LearnerUpdate, metrics: Mapping[str, float]
        ) -> None:
            self._reached = RunState(step + 1, int(metrics["policy/version"]), self._config.seed)
            reporter.step(step, scored, learned, {**metrics, **self._workers(step + 1)}, self._weights.digests)

        train(
            Schedule(
                first_step=first,
                steps=trainer.steps,
                save_every=trainer.save_every,
                eval_every=trainer.eval_every,
                resample_attempts=self._config.algorithm.dynamic_sampling,
                evaluate_first=first == 0
                or (is_due(first, trainer.eval_every, trainer.steps) and not is_evaluated(run.run_dir, first)),
            ),
            tasks_for=task_stream(run.tasks, self._config),
            rollouts=run.rollouts,
            rewards=run.rewards,
            learners=self._learners,
            weights=self._weights,
            report=report,
            save=self._save,
            evaluate=lambda step: self._evaluate(step, numbers),
        )

    def _workers(self, step: int) -> dict[str, float]:
        """Numbers of everybody who took part in a step, and what broke during it."""
        run = self._run
        run.step = step + 1
        numbers = {
            **self._weights.metrics,
            **run.rollouts.crew.stats(),
            **run.saver.poll(),
            "memory/learner": self._learners.memory_mib(),
        }
        faults = run.take_faults()
        run.put_faults(step, faults)
        return numbers | fault_metrics(faults)

    def _save(self, step: int, version: int) -> None:
        """A checkpoint from which `step` is the next one, written while the run goes on."""
        state = RunState(step, version, self._config.seed)
        self._run.saver.save(self._learners.save, Contents(state, to_yaml(self._config), self._run.values.get(step)))

    def _save_reached(self) -> None:
        """What the learners hold is on the disk; if a save of it has failed, there is another one.

        Raises:
            CheckpointError: that has failed too.
        """
        saver, reached = self._run.saver, self._reached
        try:
            saver.flush()
        except CheckpointError as error:
            log.warning("%s", error)
        if reached.step != self._resumed and not saver.has_published(reached.step):
            self._save(reached.step, reached.policy_version)
            saver.flush()

    def _evaluate(self, step: int, numbers: MetricLog) -> bool:
        """Greedy trajectories on held-out tasks, after `step` steps; whether they are the best so far.

        The start does not compete: that policy is there already.
        """
        run = self._run
        chosen = run.held_out[: self._config.trainer.eval_tasks]
        if not chosen:
            return False
        scored = run.rewards.score(run.rollouts.generate(chosen, step=EVALUATION_STEP, greedily=True))
        run.rollouts.crew.stats()  # the next step's counters start here
        keep_step(run.backlog, run.run_dir / "held_out", step, list(records(scored, run.processor.pieces)))
        metrics = held_out_metrics(scored, answer_terms=answer_terms(self._config))
        numbers.write(step, metrics)
        value = metrics.get(self._config.trainer.best_metric.removeprefix("-"), math.nan)
        run.values[step] = value
        return step > 0 and run.saver.is_best(step, value)


def task_stream(tasks: Sequence[VideoTask], config: RunConfig) -> Callable[[int, int], Sequence[VideoTask]]:
    """(step, attempt) -> tasks. Replacements of zero-variance groups come from streams of their own."""
    size = config.rollout.tasks_per_step

    def tasks_for(step: int, attempt: int) -> Sequence[VideoTask]:
        return tasks_for_step(tasks, config.seed + 1_000_003 * attempt, step, size)

    return tasks_for


def answer_terms(config: RunConfig) -> list[str]:
    """Names of the reward terms that judge the answer itself."""
    return [name for name, term in config.rewards.items() if term.fn == "answer"]
