"""A whole run, composed: prepare, cold start, spawn, resume, train, report."""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from actors.memory import own_memory_mib
from actors.ray_metrics import RayMetricsSink
from actors.weight_sync import WeightSync
from envs.dataset import tasks_for_step
from rl.advantages import CreditRules
from rl.batch import credit_metrics
from rl.check import preflight
from rl.checkpoint import Checkpoint, CheckpointStore, open_checkpoint
from rl.config import AdvantageConfig, ConfigError, RunConfig, to_dict, to_yaml
from rl.evaluate import held_out_metrics
from rl.metrics import reward_metrics, rollout_metrics
from rl.prepare import make_surroundings, prepare_policy, prepare_tasks, progress_bar
from rl.records import write_records
from rl.sinks import JsonlSink, MetricLog, Sink, TensorBoardSink, WandbSink
from rl.stations import (
    START_TIMEOUT_S,
    cluster,
    cold_started_policy,
    spawn_learners,
    spawn_rewards,
    spawn_rollouts,
)
from rl.summary import summarise
from rl.trainer import Schedule, train
from rl.trajectory import RunState, ScoredGroup, VideoTask

log = logging.getLogger(__name__)

POLICY_FOLDER = "policy"  # of a checkpoint: the Hugging Face folder `dynframe export` copies
EVALUATION_STEP = -1  # seeds of evaluation never meet those of training


class ParityError(RuntimeError):
    """Engine and learner drifted apart: the run stops before it trains on wrong ratios."""


def run_training(config: RunConfig, console: Console) -> dict[str, Any]:
    """Run to `trainer.steps`; returns the summary, which also lies in summary.json.

    Raises:
        ConfigError: the configuration cannot work here; nothing has been started.
    """
    preflight(config)
    run_dir = open_run(config)
    console.print(f"run {config.name}: {run_dir}", highlight=False)
    store = CheckpointStore(run_dir, keep=config.trainer.keep_checkpoints)
    found = find_checkpoint(config, store)
    first = found.state if found else RunState(step=0, policy_version=0, seed=config.seed)
    tasks = prepare_tasks(config, "train", console).tasks
    held_out = prepare_tasks(config, "held_out", console).tasks if config.trainer.eval_tasks else ()
    policy_dir = prepare_policy(config)

    with cluster(config, console) as slots:
        rollouts = spawn_rollouts(config, policy_dir, slots)  # loads while the cold start runs
        if config.cold_start.enabled:
            policy_dir = cold_started_policy(config, policy_dir, slots, console)
        rewards = spawn_rewards(config, slots)
        learners = spawn_learners(
            config,
            policy_dir,
            slots,
            optimizer=config.learner.optimizer,
            total_updates=config.trainer.steps * config.learner.updates_per_step,
        )
        if found:
            learners.load(found.folder)
            console.print(f"resumed at step {first.step} from {found.folder}", highlight=False)
        rollouts.wait_ready(START_TIMEOUT_S)
        weights = WeightSync(learners, rollouts, config.weight_sync, first.policy_version)
        numbers = MetricLog(make_sinks(config, run_dir, keep_through_step=first.step))

        def save(step: int, version: int) -> None:
            draft = store.begin(step)
            learners.save(draft)
            learners.export_policy(draft / POLICY_FOLDER)
            store.commit(draft, RunState(step, version, config.seed), to_yaml(config))

        def evaluate(step: int) -> None:
            if held_out:
                chosen = held_out[: config.trainer.eval_tasks]
                scored = rewards.score(rollouts.generate(chosen, step=EVALUATION_STEP, greedily=True))
                write_records(run_dir / "held_out", step, scored, limit=len(scored))
                numbers.write(step, held_out_metrics(scored, answer_terms=answer_terms(config)))

        with progress_bar(console) as progress:
            reporter = Reporter(config, run_dir, numbers, progress, first.step, policy_dir)
            train(
                Schedule(
                    first.step,
                    config.trainer.steps,
                    config.trainer.save_every,
                    config.trainer.eval_every,
                    config.algorithm.dynamic_sampling,
                ),
                tasks_for=task_stream(tasks, config),
                rollouts=rollouts,
                rewards=rewards,
                learners=learners,
                weights=weights,
                report=lambda step, scored, metrics: reporter.step(
                    step,
                    scored,
                    {**metrics, **weights.metrics, **rollouts.stats(), "memory/learner": learners.memory_mib()},
                ),
                save=save,
                evaluate=evaluate,
            )
        numbers.close()
    return conclude(run_dir, console)


class Reporter:
    """What is said after each step: metrics to sinks, trajectories to disk, a line of progress; and the parity gate."""

    def __init__(
        self, config: RunConfig, run_dir: Path, numbers: MetricLog, progress: Progress, first: int, policy_dir: Path
    ) -> None:
        self._config, self._run_dir, self._numbers, self._progress = config, run_dir, numbers, progress
        self._rules = credit_rules(config.algorithm.advantage)
        geometry = make_surroundings(config, policy_dir).processor.geometry
        self._pixels_per_token = (geometry.patch * geometry.merge) ** 2
        self._bar: TaskID = progress.add_task("training", total=config.trainer.steps, completed=first)

    def step(self, step: int, scored: Sequence[ScoredGroup], metrics: Mapping[str, float]) -> None:
        """Report one step.

        Raises:
            ParityError: the mean difference between engine and learner exceeds parity.abort_nat.
        """
        rolled = rollout_metrics([group.group for group in scored], pixels_per_token=self._pixels_per_token)
        rewards = reward_metrics(scored)
        sampled = rolled["rollout/sampled_tokens"] * sum(len(group.rewards_G) for group in scored)
        own = {
            "rollout/tokens_per_s": sampled / max(metrics["seconds/rollout"], 1e-9),
            "memory/driver": own_memory_mib(),
        }
        everything = {**rolled, **rewards, **credit_metrics(scored, self._rules), **own, **metrics}
        self._numbers.write(step + 1, everything)
        write_records(
            self._run_dir / "trajectories", step + 1, scored, limit=self._config.logging.trajectories_per_step
        )
        self._progress.update(self._bar, completed=step + 1)
        self._progress.console.print(  # a line per step: a bar alone says nothing in a job's log
            f"step {step + 1}/{self._config.trainer.steps}  reward: sampling {rewards['reward/sampling']:.3f} "
            f"reasoning {rewards['reward/reasoning']:.3f}  looks {rolled['rollout/calls']:.2f}  "
            f"{metrics['seconds/step']:.1f} s",
            highlight=False,
        )
        self._gate(step, everything)

    def _gate(self, step: int, metrics: Mapping[str, float]) -> None:
        drift = max((value for name, value in metrics.items() if name.startswith("parity/mean")), default=0.0)
        worst = max((value for name, value in metrics.items() if name.startswith("parity/max")), default=0.0)
        limits = self._config.parity
        if drift > limits.abort_nat:
            raise ParityError(
                f"step {step}: engine and learner log-probs differ by {drift:.3g} nat on average (parity.abort_nat="
                f"{limits.abort_nat:g}); run `dynframe parity` on this configuration"
            )
        if worst > limits.warn_nat:
            log.warning("step %d: engine and learner log-probs differ by up to %.2g nat", step, worst)


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


def find_checkpoint(config: RunConfig, store: CheckpointStore) -> Checkpoint | None:
    """The checkpoint to go on from, or None to start afresh.

    Raises:
        CheckpointError: `resume` names a path that is not a valid checkpoint.
    """
    if config.resume == "never":
        return None
    if config.resume == "auto":
        return store.latest_valid()
    return open_checkpoint(config.resume)


def task_stream(tasks: Sequence[VideoTask], config: RunConfig) -> Callable[[int, int], Sequence[VideoTask]]:
    """(step, attempt) -> tasks. Replacements of degenerate groups come from streams of their own."""
    size = config.rollout.tasks_per_step

    def tasks_for(step: int, attempt: int) -> Sequence[VideoTask]:
        return tasks_for_step(tasks, config.seed + 1_000_003 * attempt, step, size)

    return tasks_for


def credit_rules(advantage: AdvantageConfig) -> CreditRules:
    """The credit rules of a configuration."""
    return CreditRules(**to_dict(advantage))


def answer_terms(config: RunConfig) -> list[str]:
    """Names of the reward terms that judge the answer itself."""
    return [name for name, term in config.rewards.items() if term.fn == "answer"]


def make_sinks(config: RunConfig, run_dir: Path, *, keep_through_step: int) -> list[Sink]:
    """metrics.jsonl and Ray's metrics always; TensorBoard and W&B as configured."""
    sinks: list[Sink] = [JsonlSink(run_dir, keep_through_step=keep_through_step), RayMetricsSink(config.name)]
    if config.logging.tensorboard:
        sinks.append(TensorBoardSink(run_dir))
    if config.logging.wandb != "disabled":
        sinks.append(
            WandbSink(
                run_dir,
                mode=config.logging.wandb,
                project=config.logging.wandb_project,
                name=config.name,
                config=to_dict(config),
            )
        )
    return sinks


def conclude(run_dir: Path, console: Console) -> dict[str, Any]:
    """Write summary.json and print what was learned and where the run lies."""
    summary = summarise(run_dir)
    (run_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    table = Table(title=f"{summary['steps']} steps in {summary['seconds']:.0f} s", box=None, pad_edge=False)
    for heading in ("", "before", "after"):
        table.add_column(heading, justify="left" if not heading else "right")
    before, after = (summary["held_out"].get(moment, {}) for moment in ("before", "after"))
    for label, name in (
        ("held-out reward, sampling", "reward_sampling"),
        ("held-out reward, reasoning", "reward_reasoning"),
        ("held-out answer accuracy", "accuracy"),
        ("share of trajectories that look again", "calls"),
        ("frames retrieved per trajectory", "frames"),
    ):
        table.add_row(label, *(f"{moment.get(name, math.nan):.3f}" for moment in (before, after)))
    console.print(table)
    console.print(f"metrics, trajectories and checkpoints: {run_dir}", highlight=False)
    return summary


def run_cold_start_only(config: RunConfig, console: Console) -> Path:
    """The supervised stage alone; returns the folder of its policy."""
    if not config.cold_start.enabled:
        raise ConfigError("cold_start.enabled is false; set cold_start.enabled=true")
    policy_dir = prepare_policy(config)
    with cluster(config, console) as slots:
        return cold_started_policy(config, policy_dir, slots, console)


def run_export(run: Path, folder: Path) -> None:
    """Copy the Hugging Face folder of a run's newest valid checkpoint, or of a given one, to `folder`.

    Raises:
        ConfigError: no checkpoint there, or `folder` exists.
    """
    if folder.exists():
        raise ConfigError(f"{folder} exists already; name a folder that does not")
    if (run / "checkpoints").is_dir():
        found = CheckpointStore(run, keep=1).latest_valid()
        if found is None:
            raise ConfigError(f"{run}: no valid checkpoint in it")
        run = found.folder
    if not (run / POLICY_FOLDER).is_dir():
        raise ConfigError(f"{run}: neither a run nor a checkpoint; give a folder such as runs/quickstart")
    shutil.copytree(run / POLICY_FOLDER, folder)
