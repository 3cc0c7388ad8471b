"""A whole run, composed: prepare, cold start, spawn, resume, train, report."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from rl.checkpoint.checkpoint import POLICY_FOLDER, Checkpoint
from rl.checkpoint.mirror import Mirror
from rl.checkpoint.remote import RemoteCheckpoints
from rl.checkpoint.saver import Saver
from rl.checkpoint.store import CheckpointStore
from rl.config.errors import ConfigError
from rl.config.file import to_yaml
from rl.config.run import RunConfig
from rl.policy.processor import Processor
from rl.run.check import preflight
from rl.run.console import say, stage
from rl.run.initial_policy import cold_started_policy
from rl.run.kernels import common_kernels
from rl.run.policy import prepare_policy
from rl.run.prepare import prepare_tasks
from rl.run.rebuilds import train_to_the_end
from rl.run.reporter import conclude
from rl.run.resume import checkpoint_of, find_checkpoint, remote_of
from rl.run.run import Run
from rl.run.stop_signals import StopSignals
from rl.run.workers import (
    START_TIMEOUT_S,
    cluster,
    spawn_rewards,
    spawn_rollouts,
)
from rl.tracking.log_file import keep_log

log = logging.getLogger(__name__)


def run_training(config: RunConfig, console: Console) -> dict[str, Any]:
    """Run to `trainer.steps`; returns the summary, which also lies in summary.json.

    Raises:
        ConfigError: the configuration cannot work here; nothing has been started.
        StopRequested: a signal came; the run is saved, and goes on when it is started again.
    """
    preflight(config)
    home, trainer = Path(config.output_dir).absolute() / config.name, config.trainer
    store = CheckpointStore(home, trainer.keep_checkpoints, trainer.best_metric, trainer.keep_every)
    remote = remote_of(config)
    found = find_checkpoint(config, store, remote, partial(say, console))
    run_dir = open_run(config)
    with keep_log(run_dir) as log_file:
        say(console, f"run {config.name}: {run_dir} (all that is logged: {log_file})")
        if found and (done := found.state.step) >= trainer.steps:
            say(console, f"{done} steps are done; for more: trainer.steps={2 * done}, for a new run: name=…")
        elif found:
            say(console, f"resuming at step {done} from {found.folder}")
        _train_from(found, config, console, run_dir, partial(make_saver, config, store, remote))
    return conclude(run_dir, console)


def _train_from(
    found: Checkpoint | None, config: RunConfig, console: Console, run_dir: Path, open_saver: Callable[[], Saver]
) -> None:
    """Data, policy, workers; then the steps from a checkpoint, or from the start."""
    tasks = prepare_tasks(config, "train", console).tasks
    held_out = prepare_tasks(config, "held_out", console).tasks if config.trainer.eval_tasks else ()
    with stage(console, "preparing the policy"):
        policy_dir = prepare_policy(config)
    signals = StopSignals(config.trainer.stop_grace_s)
    with cluster(config, console) as slots:
        starting = ExitStack()  # engines load while the cold start runs
        starting.enter_context(stage(console, f"starting {config.rollout.num_workers} engines"))
        rollouts = spawn_rollouts(config, policy_dir, slots, signals.check)
        if config.cold_start.enabled:
            policy_dir = cold_started_policy(config, policy_dir, slots, console)
        rewards, processor = spawn_rewards(config, slots), Processor.from_pretrained(policy_dir, config.policy.scenes)
        rollouts.workers.wait_ready(START_TIMEOUT_S)
        starting.close()
        with signals, open_saver() as saver:
            run = Run(config, console, run_dir, policy_dir, slots, saver, tasks, held_out, processor, rollouts, rewards)
            if config.rollout.deterministic and not config.placement.rollout_gpus:  # on GPUs no bits are promised
                run.kernels = common_kernels(rollouts.workers, found, partial(say, console))
            train_to_the_end(run, found)


def make_saver(config: RunConfig, store: CheckpointStore, remote: RemoteCheckpoints | None) -> Saver:
    """What saves the run's checkpoints, and copies them to the remote if there is one."""
    trainer = config.trainer
    return Saver(
        store,
        timeout_s=trainer.save_timeout_s,
        max_failed=trainer.max_failed_saves,
        mirror=Mirror(remote, store) if remote else None,
        mirror_timeout_s=trainer.remote_timeout_s,
    )


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
