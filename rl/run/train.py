"""A whole run, composed: prepare, cold start, spawn, resume, train, report."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from actors.sleeping_engines import SleepingEngines
from rl.checkpoint.checkpoint import Checkpoint
from rl.checkpoint.mirror import Mirror
from rl.checkpoint.saver import Saver
from rl.checkpoint.store import CheckpointStore
from rl.config.errors import ConfigError
from rl.config.run import RunConfig
from rl.policy.processor import Processor
from rl.run.console.stages import say, stage
from rl.run.initial_policy import cold_started_policy
from rl.run.kernels import common_kernels
from rl.run.preflight.check import preflight
from rl.run.prepare.policy import prepare_policy
from rl.run.prepare.tasks import prepare_tasks
from rl.run.rebuilds import train_to_the_end
from rl.run.recomputation import with_recomputation
from rl.run.reporter import conclude
from rl.run.resume import find_checkpoint, remote_of
from rl.run.run import Run
from rl.run.stop_signals import StopSignals
from rl.run.workers import (
    cluster,
    planned_turns,
    spawn_rewards,
    starting_rollouts,
    uses_engines_gpus,
)
from rl.run.writer import Writer, only_writer
from rl.tracking.log_file import keep_log
from rl.tracking.summary import is_evaluated

log = logging.getLogger(__name__)

TrainFrom = Callable[[Checkpoint | None, RunConfig, Console, Writer, Callable[[], Saver]], None]


def run_training(config: RunConfig, console: Console) -> dict[str, Any]:
    """Run to `trainer.steps`; returns the summary, which also lies in summary.json.

    Raises:
        ConfigError: the configuration cannot work here; nothing has been started.
        StopRequested: a signal came; the run is saved, and goes on when it is started again.
    """
    preflight(config)
    return run_from_newest(config, console, _train_from)


def run_from_newest(config: RunConfig, console: Console, train_from: TrainFrom) -> dict[str, Any]:
    """Go on from the newest checkpoint, or start, with the run's leases held; returns the summary.

    Args:
        train_from: takes the steps that are left after a checkpoint.
    """
    remote, trainer = remote_of(config), config.trainer
    with only_writer(config, remote) as writer:
        store = CheckpointStore(writer.run_dir, trainer.keep_checkpoints, config.best_metric, trainer.keep_every)
        found = find_checkpoint(config, store, remote, partial(say, console))
        say(console, f"run {config.name}: {writer.run_dir}")
        open_saver = partial(make_saver, config, store, writer)
        if found and (done := found.state.step) >= trainer.steps:
            say(console, f"{done} steps are done; for more: trainer.steps={2 * done}, for a new run: name=…")
        elif found:
            say(console, f"resuming at step {done} from {found.folder}")
        if found and is_complete(found, config, writer.run_dir):
            with open_saver() as saver:
                saver.copy_earlier()
        else:
            train_from(found, config, console, writer, open_saver)
        writer.check()
        return conclude(writer.run_dir, console)


def is_complete(found: Checkpoint, config: RunConfig, run_dir: Path) -> bool:
    """Whether no step and no evaluation is left to do after a checkpoint."""
    step, reported = found.state.step, (run_dir / "metrics.jsonl").is_file()
    evaluated = not config.trainer.eval_tasks or is_evaluated(run_dir, step)
    return step >= config.trainer.steps and reported and evaluated


def _train_from(
    found: Checkpoint | None, config: RunConfig, console: Console, writer: Writer, open_saver: Callable[[], Saver]
) -> None:
    """Data, policy, workers; then the steps from a checkpoint, or from the start."""
    tasks = prepare_tasks(config, "train", console).tasks
    held_out = prepare_tasks(config, "held_out", console).tasks if config.trainer.eval_tasks else ()
    with stage(console, "preparing the policy"):
        policy_dir = prepare_policy(config, console)
    config = with_recomputation(config, policy_dir, found, partial(say, console))
    signals = StopSignals(config.trainer.stop_grace_s)

    def check() -> None:
        signals.check()
        writer.check()

    with keep_log(writer.run_dir) as log_file, cluster(config, policy_dir, console) as slots:
        say(console, f"all that is logged: {log_file}")
        teach, given_up = config.cold_start.enabled, planned_turns(config, policy_dir)
        if teach and uses_engines_gpus(config):
            policy_dir, teach = cold_started_policy(config, policy_dir, slots, console), False
        with starting_rollouts(config, policy_dir, slots, console, check) as rollouts:  # during the cold start
            if given_up is not None:  # until the first push
                SleepingEngines(rollouts.workers, drops_weights=given_up.weights).sleep()
            if teach:
                policy_dir = cold_started_policy(config, policy_dir, slots, console)
            rewards = spawn_rewards(config, slots, rollouts)
            processor = Processor.from_pretrained(policy_dir, config.policy.scenes)
        with signals, open_saver() as saver:
            parts = (policy_dir, slots, saver, tasks, held_out, processor, rollouts, rewards, log_file)
            run = Run(config, console, writer, *parts, given_up)
            if config.rollout.deterministic and not config.placement.rollout_gpus:  # on GPUs no bits are promised
                run.kernels = common_kernels(rollouts.workers, found, partial(say, console))
            train_to_the_end(run, found)


def make_saver(config: RunConfig, store: CheckpointStore, writer: Writer) -> Saver:
    """What saves the run's checkpoints, and copies them to the remote if there is one."""
    trainer = config.trainer
    return Saver(
        store,
        timeout_s=trainer.save_timeout_s,
        max_failed=trainer.max_failed_saves,
        mirror=Mirror(writer.remote, store, writer.check_remote) if writer.remote else None,
        mirror_timeout_s=trainer.remote_timeout_s,
        may_write=writer.check,
    )


def run_cold_start_only(config: RunConfig, console: Console) -> Path:
    """The supervised stage alone; returns the folder of its policy."""
    if not config.cold_start.enabled:
        raise ConfigError("cold_start.enabled is false; set cold_start.enabled=true")
    policy_dir = prepare_policy(config, console)
    with cluster(config, policy_dir, console) as slots:
        return cold_started_policy(config, policy_dir, slots, console)
