"""Going on: the checkpoint a run starts from, and whether it is a checkpoint of the same run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rl.checkpoint import CHECKPOINTS, MANIFEST, Checkpoint, CheckpointError, CheckpointStore, open_checkpoint
from rl.config import ConfigError, RunConfig, to_dict
from rl.learner_layout import LearnerStateError, require_loadable

MEANING = (  # keys that a resumed run may not change; how long, how fast and where it runs may change
    *("seed", "policy.", "data.train.", "data.held_out.", "data.quickstart.", "data.bad_rows", "video.v0."),
    *("retrieval.", "prompt.", "rewards.", "scoring.calls", "algorithm."),
    *("rollout.group_size", "rollout.tasks_per_step", "rollout.max_new_tokens", "rollout.temperature"),
    *("rollout.engine.max_model_len", "learner.freeze_vision", "cold_start."),
)


def find_checkpoint(config: RunConfig, store: CheckpointStore) -> Checkpoint | None:
    """The checkpoint to go on from, or None to start afresh.

    Raises:
        ConfigError: `resume` names a path that is not a valid checkpoint, the checkpoint is of another run, or these
            learner ranks could not go on from it.
    """
    if config.resume == "never":
        return None
    try:
        found = store.latest_valid() if config.resume == "auto" else open_checkpoint(config.resume)
    except CheckpointError as error:
        raise ConfigError(f"resume: {error}") from error
    changed = changed_meaning(yaml.safe_load(found.config_yaml), to_dict(config)) if found else []
    if changed:
        raise ConfigError(
            f"resume: {found.folder} is of a run with other settings: {'; '.join(changed[:3])}"
            f"{' …' if len(changed) > 3 else ''}. Give this run a name of its own (name=…), or resume=never"
        )
    if found:
        try:
            require_loadable(found.folder, config.learner.zero_stage, config.learner.num_ranks)
        except LearnerStateError as error:
            raise ConfigError(f"resume: {error}") from error
    return found


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
