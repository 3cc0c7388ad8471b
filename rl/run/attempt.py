"""One attempt at a run: from a checkpoint, or the start, to the last step, with one set of learners.

Part of the composition root. Learners that are lost end the attempt; rl.run.rebuilds makes the next one.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.progress import Progress

from actors.groups import load_groups, load_whole_groups
from actors.learner_group import LearnerGroup
from actors.profiles import EngineProfiles, RankProfiles
from actors.rollout_group import RolloutError
from actors.sleeping_engines import SleepingEngines
from actors.taking_turns import TakingTurns
from actors.weight_sync import WeightSync
from envs.data.dataset import tasks_for_step
from rl.checkpoint.checkpoint import Checkpoint
from rl.checkpoint.manifest import CheckpointError, DamagedError
from rl.checkpoint.sampled_steps import read_sampled_steps
from rl.checkpoint.saver import Contents
from rl.config.file import to_yaml
from rl.config.run import RunConfig
from rl.group_summary import RemoteGroup
from rl.run.console.stages import progress_bar, say, stage
from rl.run.console.step_line import evaluation_line
from rl.run.page import LARGEST_BYTES, REPORT, write_report
from rl.run.profiles import Profiles
from rl.run.reporter import Reporter, answer_terms, keep_step, make_sinks, scored_again, with_tokens
from rl.run.run import Run
from rl.run.stop_signals import StopRequested
from rl.run.timeline import Timeline
from rl.run.workers import direct_transfer
from rl.tracking.faults import fault_metrics
from rl.tracking.held_out import EVALUATION_STEP, held_out_metrics
from rl.tracking.records import records
from rl.tracking.samples import HELD_OUT, TRAINING, SampleRow, Samples, sample_rows, sample_videos
from rl.tracking.sinks import MetricLog
from rl.tracking.step_metrics import engine_counters_without, min_version
from rl.tracking.summary import is_evaluated
from rl.trainer import Schedule, is_due, train
from rl.trajectory import LearnerUpdate, RunState, SampledStep, ScoredGroup, TrajectoryGroup, VideoTask

log = logging.getLogger(__name__)


class Attempt:
    """From a checkpoint, or the start, to the last step, with one set of learners."""

    def __init__(self, run: Run, learners: LearnerGroup, found: Checkpoint | None) -> None:
        self._run, self._config, self._learners = run, run.config, learners
        self._reached = found.state if found else RunState(step=0, policy_version=0, seed=run.config.seed)
        self._found = found
        self._resumed, run.step = self._reached.step if found else -1, self._reached.step + 1
        self._weights = WeightSync(
            learners,
            run.rollouts.workers,
            run.config.weight_sync,
            self._reached.policy_version,
            keeps_pushed=run.config.trainer.max_policy_lag > 0,
            direct=direct_transfer(run.config, learners, run.rollouts.workers),
        )
        self._learning, self._pushing = learners, self._weights
        if run.given_up is not None:
            engines = SleepingEngines(run.rollouts.workers, drops_weights=run.given_up.weights)
            turns = TakingTurns(learners, self._weights, engines, offloads=run.given_up.states)
            self._learning = self._pushing = turns
        self._beside: Counter[str] = Counter()  # by metric, what engines did for the next step beside evaluations
        self._timeline = Timeline(run.run_dir, run.backlog)
        profiled = EngineProfiles(run.rollouts.workers), RankProfiles(learners)
        steps = run.config.trainer.profile_steps
        self._profiles = Profiles(steps, run.run_dir, profiled, run.console, self._timeline)

    def train(self) -> None:
        """The loop of rl.trainer.

        Raises:
            StopRequested: a signal came; the run is saved at the step it had reached.
            LearnerError: a rank was lost, and with it all of them.
        """
        run = self._run
        run.sampler.reset(self._sampled_ahead())
        sinks = make_sinks(self._config, run.run_dir, run.backlog, run.console, keep_through_step=self._resumed)
        with closing(MetricLog(sinks)) as numbers, progress_bar(run.console) as progress:
            try:
                self._loop(numbers, progress)
            except StopRequested:
                self._save_reached()
                raise
            finally:
                self._run.sampler.reset()
            with stage(self._run.console, "saving the last checkpoint"):
                self._run.saver.flush()  # the ranks write it, and end with the attempt
            numbers.attach(self._page)

    def _page(self) -> Path:
        """The run as one HTML page, as far as it has come."""
        run_dir = self._run.run_dir
        return write_report(run_dir, run_dir / REPORT, LARGEST_BYTES, self._run.console).path

    def _sampled_ahead(self) -> dict[int, SampledStep]:
        """Steps that the checkpoint brings along, pixels decoded again; what cannot be had so is sampled anew."""
        if self._found is None:
            return {}
        run, oldest = self._run, self._reached.policy_version - self._config.trainer.max_policy_lag
        tasks = {task.task_id: task for task in run.tasks}
        try:
            brought = read_sampled_steps(self._found.folder, tasks.__getitem__)
        except DamagedError as error:  # the file is whole: tasks have gone from the data
            say(run.console, f"steps that had been sampled ahead are sampled anew: {error}")
            return {}
        sampled = {}
        for step, one in brought.items():
            if min_version(one.groups) < oldest:
                say(run.console, f"step {step + 1} is sampled anew: what the checkpoint holds of it is too old")
                continue
            try:
                groups = run.rollouts.decode_again([scored.group for scored in one.groups], step=step)
            except RolloutError as error:
                say(run.console, f"step {step + 1} is sampled anew, so it is not as it would have been: {error}")
                continue
            pairs = zip(groups, one.groups, strict=True)
            sampled[step] = replace(one, groups=tuple(ScoredGroup(group, old.rewards_G) for group, old in pairs))
        return sampled

    def _loop(self, numbers: MetricLog, progress: Progress) -> None:
        run, trainer, first = self._run, self._config.trainer, self._reached.step
        reporter = Reporter(
            self._config, run.run_dir, numbers, run.backlog, progress, first, run.processor, load_groups
        )

        def report(
            step: int, scored: Sequence[ScoredGroup[RemoteGroup]], learned: LearnerUpdate, metrics: Mapping[str, float]
        ) -> None:
            self._reached = RunState(step + 1, int(metrics["policy/version"]), self._config.seed)
            measured = {**metrics, **self._workers(step + 1), **self._idle(step + 1, learned)}
            reporter.step(step, scored, learned, measured, self._weights.digests)
            every = self._config.logging.sample_every
            if every and step % every == 0:
                numbers.show(step + 1, partial(self._samples, TRAINING, scored))
            self._profiles.after(step + 1)
            self._profiles.before(step + 2)

        self._profiles.before(first + 1)
        train(
            Schedule(
                first_step=first,
                steps=trainer.steps,
                save_every=trainer.save_every,
                eval_every=trainer.eval_every,
                resample_attempts=self._config.algorithm.dynamic_sampling,
                max_lag=trainer.max_policy_lag,
                evaluate_first=first == 0
                or (is_due(first, trainer.eval_every, trainer.steps) and not is_evaluated(run.run_dir, first)),
            ),
            tasks_for=task_stream(run.tasks, self._config),
            rollouts=run.sampler,
            learners=self._learning,
            weights=self,
            report=report,
            save=self._save,
            evaluate=lambda step: self._evaluate(step, numbers),
        )

    def push(self) -> int:
        """Push the learners' weights to every engine; returns the version they now run."""
        with self._timeline.span("push"):
            return self._pushing.push()

    def _idle(self, step: int, learned: LearnerUpdate) -> dict[str, float]:
        """How long engines and learners had nothing to do; who worked when goes into lanes.jsonl."""
        run, workers = self._run, self._run.rollouts.workers
        spans = [*learned.spans, *workers.take_spans(), *run.rewards.take_spans(), *run.saver.take_spans()]
        ranks = [f"learner/{rank}" for rank in range(self._config.learner.num_ranks)]
        return self._timeline.step(step, spans, workers=[*(slot.name for slot in workers.slots), *ranks])

    def _workers(self, step: int) -> dict[str, float]:
        """Numbers of all workers that took part in a step, and the faults during it."""
        run = self._run
        run.step = step + 1
        beside, self._beside = self._beside, Counter()
        counted = run.rollouts.workers.stats()
        numbers = {
            **self._weights.metrics,
            **counted,
            **{name: counted.get(name, 0.0) + value for name, value in beside.items()},
            **run.saver.poll(),
            "memory/learner": self._learners.memory_mib(),
        }
        faults = run.take_faults()
        run.put_faults(step, faults)
        return numbers | fault_metrics(faults)

    def _save(self, step: int, version: int) -> None:
        """A checkpoint from which `step` is the next one, written while the run goes on."""
        state = RunState(step, version, self._config.seed)
        ahead = {ahead: (one, self._whole(one.groups)) for ahead, one in self._run.sampler.sampled.items()}
        sampled = {ahead: replace(one, groups=groups) for ahead, (one, groups) in ahead.items() if groups is not None}
        contents = Contents(state, to_yaml(self._config), self._run.values.get(step), self._run.kernels, sampled)
        with self._timeline.span("save"):
            self._run.saver.save(self._learners.save, contents)

    def _whole(self, scored: Sequence[ScoredGroup[RemoteGroup]]) -> tuple[ScoredGroup[TrajectoryGroup], ...] | None:
        """The groups with their tokens, for a checkpoint; None if one is lost: a resumed run samples the step anew."""
        groups = load_groups([one.group for one in scored])
        if any(group is None for group in groups):
            return None
        return tuple(ScoredGroup(group, one.rewards_G) for group, one in zip(groups, scored, strict=True))

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
        is_ahead = run.sampler.is_ahead
        evaluating = stage(run.console, f"evaluating on {len(chosen):,} held-out tasks after step {step}")
        with evaluating, self._timeline.span("evaluation"):
            groups = run.rollouts.generate(chosen, step=EVALUATION_STEP, greedily=True)
            scored = run.score(groups, step=EVALUATION_STEP)
        counted = run.rollouts.workers.stats()  # the next step's counters start here, or with what it had done by now
        if is_ahead:
            self._beside.update(engine_counters_without(counted, groups))
        shown = list(records(with_tokens(scored, load_groups), run.processor.pieces))
        keep_step(run.backlog, run.run_dir / "held_out", step, shown)
        metrics = held_out_metrics(scored, answer_terms=answer_terms(self._config))
        numbers.write(step, metrics)
        numbers.show(step, lambda: self._samples(HELD_OUT, scored, sample_rows(shown)))
        say(run.console, evaluation_line(step, metrics))
        value = metrics.get(self._config.trainer.best_metric.removeprefix("-"), math.nan)
        run.values[step] = value
        return step > 0 and run.saver.is_best(step, value)

    def _samples(
        self, of: str, scored: Sequence[ScoredGroup[RemoteGroup]], rows: tuple[SampleRow, ...] = ()
    ) -> Samples:
        """The first trajectories of a step or an evaluation as videos, beside rows that are there already."""
        chosen = scored[: self._config.logging.sample_videos]
        groups = load_whole_groups([one.group for one in chosen])
        shown = list(records(scored_again(chosen, groups), self._run.processor.pieces))
        return Samples(of, sample_videos(shown, groups), rows)


def task_stream(tasks: Sequence[VideoTask], config: RunConfig) -> Callable[[int, int], Sequence[VideoTask]]:
    """(step, attempt) -> tasks. Replacements of zero-variance groups come from streams of their own."""
    size = config.rollout.tasks_per_step

    def tasks_for(step: int, attempt: int) -> Sequence[VideoTask]:
        return tasks_for_step(tasks, config.seed + 1_000_003 * attempt, step, size)

    return tasks_for
