"""A whole run, composed: prepare, cold start, spawn, resume, train, report."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from actors.learner import LearnerGroup
from actors.reward import RewardPool
from actors.rollout import RolloutPool
from actors.weight_sync import WeightSync
from envs.dataset import tasks_for_step
from rl.check import preflight
from rl.checkpoint import POLICY_FOLDER, CheckpointStore
from rl.config import ConfigError, RunConfig, to_yaml
from rl.evaluate import EVALUATION_STEP, held_out_metrics
from rl.policy.processor import Processor
from rl.prepare import prepare_policy, prepare_tasks, progress_bar
from rl.records import records, write_step
from rl.reporter import Reporter, conclude, make_sinks
from rl.resume import checkpoint_of, find_checkpoint
from rl.sinks import MetricLog
from rl.stations import (
    START_TIMEOUT_S,
    cluster,
    cold_started_policy,
    spawn_learners,
    spawn_rewards,
    spawn_rollouts,
)
from rl.trainer import Schedule, train
from rl.trajectory import LearnerUpdate, RunState, ScoredGroup, VideoTask

log = logging.getLogger(__name__)


def run_training(config: RunConfig, console: Console) -> dict[str, Any]:
    """Run to `trainer.steps`; returns the summary, which also lies in summary.json.

    Raises:
        ConfigError: the configuration cannot work here; nothing has been started.
    """
    preflight(config)
    home, trainer = Path(config.output_dir).absolute() / config.name, config.trainer
    store = CheckpointStore(home, trainer.keep_checkpoints, trainer.best_metric)
    found = find_checkpoint(config, store, partial(console.print, markup=False, highlight=False, soft_wrap=True))
    run_dir = open_run(config)
    console.print(f"run {config.name}: {run_dir}", highlight=False)
    first = found.state if found else RunState(step=0, policy_version=0, seed=config.seed)
    if first.step >= config.trainer.steps:
        console.print(f"{first.step} steps are done; for more: trainer.steps={2 * first.step}, for a new run: name=…")
    tasks = prepare_tasks(config, "train", console).tasks
    held_out = prepare_tasks(config, "held_out", console).tasks if config.trainer.eval_tasks else ()
    policy_dir = prepare_policy(config)

    with cluster(config, console) as slots:
        rollouts = spawn_rollouts(config, policy_dir, slots)  # loads while the cold start runs
        if config.cold_start.enabled:
            policy_dir = cold_started_policy(config, policy_dir, slots, console)
        updates = config.trainer.steps * config.learner.updates_per_step
        optimizer = config.learner.optimizer
        learners = spawn_learners(config, policy_dir, slots, optimizer=optimizer, total_updates=updates)
        if found:
            learners.load(found.folder)
            console.print(f"resumed at step {first.step} from {found.folder}", highlight=False)
        rollouts.wait_ready(START_TIMEOUT_S)
        numbers = MetricLog(make_sinks(config, run_dir, keep_through_step=first.step if found else -1))
        weights = WeightSync(learners, rollouts, config.weight_sync, first.policy_version)
        rewards, processor = spawn_rewards(config, slots), Processor.from_pretrained(policy_dir, config.policy.scenes)
        run = Run(config, run_dir, store, held_out, processor, rollouts, rewards, learners, weights, numbers)
        try:
            run.train(tasks, first.step, console)
        finally:
            numbers.close()
    return conclude(run_dir, console)


@dataclass(frozen=True, slots=True)
class Run:
    """A run whose workers stand ready."""

    config: RunConfig
    run_dir: Path
    store: CheckpointStore
    held_out: Sequence[VideoTask]
    processor: Processor
    rollouts: RolloutPool
    rewards: RewardPool
    learners: LearnerGroup
    weights: WeightSync
    numbers: MetricLog
    values: dict[int, float] = field(default_factory=dict)  # of trainer.best_metric, by the step it was evaluated at

    def train(self, tasks: Sequence[VideoTask], first_step: int, console: Console) -> None:
        """The loop of rl.trainer, from `first_step` to the last."""
        trainer = self.config.trainer
        with progress_bar(console) as progress:
            reporter = Reporter(self.config, self.run_dir, self.numbers, progress, first_step, self.processor)

            def report(
                step: int, scored: Sequence[ScoredGroup], learned: LearnerUpdate, metrics: Mapping[str, float]
            ) -> None:
                workers = {
                    **self.weights.metrics,
                    **self.rollouts.stats(),
                    "memory/learner": self.learners.memory_mib(),
                }
                reporter.step(step, scored, learned, {**metrics, **workers}, self.weights.digests)

            train(
                Schedule(
                    first_step=first_step,
                    steps=trainer.steps,
                    save_every=trainer.save_every,
                    eval_every=trainer.eval_every,
                    resample_attempts=self.config.algorithm.dynamic_sampling,
                ),
                tasks_for=task_stream(tasks, self.config),
                rollouts=self.rollouts,
                rewards=self.rewards,
                learners=self.learners,
                weights=self.weights,
                report=report,
                save=self.save,
                evaluate=self.evaluate,
            )

    def save(self, step: int, version: int) -> None:
        """A checkpoint from which `step` is the next one."""
        draft = self.store.begin(step)
        self.learners.save(draft)
        self.learners.export_policy(draft / POLICY_FOLDER)
        state = RunState(step, version, self.config.seed)
        self.store.commit(draft, state, to_yaml(self.config), self.values.get(step))

    def evaluate(self, step: int) -> bool:
        """Greedy trajectories on held-out tasks, after `step` steps; whether they are the best so far.

        The start does not compete: that policy is there already.
        """
        chosen = self.held_out[: self.config.trainer.eval_tasks]
        if not chosen:
            return False
        scored = self.rewards.score(self.rollouts.generate(chosen, step=EVALUATION_STEP, greedily=True))
        self.rollouts.stats()  # the next step's counters start here
        write_step(self.run_dir / "held_out", step, records(scored, self.processor.pieces))
        metrics = held_out_metrics(scored, answer_terms=answer_terms(self.config))
        self.numbers.write(step, metrics)
        value = metrics.get(self.config.trainer.best_metric.removeprefix("-"), math.nan)
        self.values[step] = value
        return step > 0 and self.store.is_best(step, value)


def open_run(config: RunConfig) -> Path:
    """The run's folder, with its resolved configuration; a fresh start moves what lay there aside.

    Raises:
        ConfigError: the folder cannot be written.
    """
    run_dir = Path(config.output_dir) / config.name
    try:
        if config.resume == "never" and run_dir.exists():
            run_dir.rename(run_dir.with_name(f"{run_dir.name}.{time.strftime('%Y%m%d-%H%M%S')}"))
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"output_dir: cannot write {run_dir}: {error.strerror}") from error
    return run_dir.absolute()


def task_stream(tasks: Sequence[VideoTask], config: RunConfig) -> Callable[[int, int], Sequence[VideoTask]]:
    """(step, attempt) -> tasks. Replacements of degenerate groups come from streams of their own."""
    size = config.rollout.tasks_per_step

    def tasks_for(step: int, attempt: int) -> Sequence[VideoTask]:
        return tasks_for_step(tasks, config.seed + 1_000_003 * attempt, step, size)

    return tasks_for


def answer_terms(config: RunConfig) -> list[str]:
    """Names of the reward terms that judge the answer itself."""
    return [name for name, term in config.rewards.items() if term.fn == "answer"]


def run_cold_start_only(config: RunConfig, console: Console) -> Path:
    """The supervised stage alone; returns the folder of its policy."""
    if not config.cold_start.enabled:
        raise ConfigError("cold_start.enabled is false; set cold_start.enabled=true")
    policy_dir = prepare_policy(config)
    with cluster(config, console) as slots:
        return cold_started_policy(config, policy_dir, slots, console)


def run_export(run: Path, folder: Path, *, best: bool = False) -> None:
    """Copy the Hugging Face folder of a run's newest valid checkpoint, its best, or a given one, to `folder`.

    Raises:
        ConfigError: no checkpoint there, or `folder` exists.
    """
    if folder.exists():
        raise ConfigError(f"{folder} exists already; name a folder that does not")
    shutil.copytree(checkpoint_of(run, best=best).folder / POLICY_FOLDER, folder)
