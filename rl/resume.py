"""Going on: the checkpoint a run starts from, and whether it is a checkpoint of the same run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from rl.checkpoint import CHECKPOINTS, Checkpoint, CheckpointStore, open_checkpoint
from rl.config import ConfigError, RunConfig, to_dict
from rl.manifest import MANIFEST, CheckpointError, DamagedError
from rl.remote_storage import RemoteCheckpoints, RemoteError

log = logging.getLogger(__name__)

MEANING = (  # keys that a resumed run may not change; how long, how fast and where it runs may change
    *("seed", "policy.", "data.train.", "data.held_out.", "data.quickstart.", "data.bad_rows", "video.v0."),
    *("retrieval.", "prompt.", "rewards.", "scoring.calls", "algorithm."),
    *("rollout.group_size", "rollout.tasks_per_step", "rollout.max_new_tokens", "rollout.temperature"),
    *("rollout.engine.max_model_len", "learner.freeze_vision", "cold_start."),
)


def find_checkpoint(
    config: RunConfig,
    store: CheckpointStore,
    remote: RemoteCheckpoints | None = None,
    say: Callable[[str], None] = log.warning,
) -> Checkpoint | None:
    """The checkpoint to go on from, or None to start afresh.

    Args:
        remote: also looked into; what is newer or better there is brought here.
        say: called with a line for every checkpoint that is passed over, and why.
    Raises:
        ConfigError: `resume` names a path that is not a valid checkpoint, checkpoints are there but none is valid, the
            remote does not answer, or the checkpoint is of another run.
    """
    if config.resume == "never":
        return None
    try:
        found = newest_valid(store, remote, say) if config.resume == "auto" else open_checkpoint(config.resume)
    except CheckpointError as error:
        raise ConfigError(f"resume: {error}") from error
    changed = changed_meaning(yaml.safe_load(found.config_yaml), to_dict(config)) if found else []
    if changed:
        raise ConfigError(
            f"resume: {found.folder} is of a run with other settings: {'; '.join(changed[:3])}"
            f"{' …' if len(changed) > 3 else ''}. Give this run a name of its own (name=…), or resume=never"
        )
    return found


def newest_valid(
    store: CheckpointStore, remote: RemoteCheckpoints | None, say: Callable[[str], None]
) -> Checkpoint | None:
    """The newest whole checkpoint of disk and remote, brought to the disk; None if none was ever published.

    Raises:
        CheckpointError: none of those that are there is whole, the remote does not answer, or the disk is full. A run
            that started at step 0 all the same would bury what it has.
    """
    here = [(step, True, partial(open_checkpoint, folder)) for step, folder in store.published().items()]
    there = [(step, False, partial(remote.fetch, step, store)) for step in remote.steps()] if remote else []
    candidates = sorted(here + there, key=lambda candidate: candidate[:2], reverse=True)  # the disk's first of equals
    for _, _, read in candidates:
        try:
            found = read()
        except DamagedError as error:
            say(f"checkpoint passed over: {error}")
            continue
        if remote:
            _fetch_best(store, remote, found.state.step, say)
        return found
    if candidates:
        raise CheckpointError(
            f"{len(candidates)} checkpoints are there ({store.folder}{f', {remote.url}' if remote else ''}), but none "
            "is whole; mend one, or start afresh with resume=never, which keeps them aside"
        )
    return None


def _fetch_best(store: CheckpointStore, remote: RemoteCheckpoints, before: int, say: Callable[[str], None]) -> None:
    """The best one belongs to a run as well; it can do without."""
    try:
        best = remote.best()
        if best is not None and best < before and best not in store.published():
            remote.fetch(best, store)
    except CheckpointError as error:
        say(f"the best checkpoint stays where it is: {error}")


def remote_of(config: RunConfig) -> RemoteCheckpoints | None:
    """Where the run's checkpoints are copied to, if anywhere; it must answer before a run starts.

    A run that starts afresh sets aside what lies there, as it does on the disk: nothing may take it for its own.

    Raises:
        ConfigError: it does not answer.
    """
    if not config.trainer.remote:
        return None
    try:
        remote = RemoteCheckpoints(config.trainer.remote, config.name)
        if config.resume == "never" and (aside := remote.set_aside_all()):
            log.warning("%s: set aside as %s, for this run starts afresh", remote.url, aside)
        remote.steps()
    except RemoteError as error:
        raise ConfigError(f"trainer.remote: {error}; mend that, or go on without (trainer.remote=)") from error
    return remote


def checkpoint_of(run: Path, *, best: bool = False) -> Checkpoint:
    """A run's newest valid checkpoint, or its best; or the checkpoint that `run` itself is.

    Raises:
        ConfigError: there is none, or it is not whole.
    """
    try:
        if not (run / CHECKPOINTS).is_dir():
            if not (run / MANIFEST).is_file():
                raise ConfigError(f"{run}: neither a run nor a checkpoint; give a folder such as runs/quickstart")
            return open_checkpoint(run)
        store = CheckpointStore(run)
        found = store.best_valid() if best else store.latest_valid()
    except CheckpointError as error:
        raise ConfigError(str(error)) from error
    if found is None and best:
        raise ConfigError(f"{run}: no checkpoint is known as the best (trainer.best_metric, trainer.eval_every)")
    if found is None:
        raise ConfigError(f"{run}: no valid checkpoint in it")
    return found


def changed_meaning(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "", meaning: tuple[str, ...] = MEANING
) -> list[str]:
    """What differs between two configurations among the keys that make a run what it is: "key: old -> new"."""
    changed = []
    for key in sorted(old.keys() | new.keys(), key=str):
        name, before, now = f"{prefix}{key}", old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            changed += changed_meaning(before, now, f"{name}.", meaning)
        elif before != now and name.startswith(meaning):
            changed.append(f"{name}: {before} -> {now}")
    return changed
