"""Going on: the checkpoint a run starts from, and whether it is a checkpoint of the same run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from reprlib import Repr
from typing import Any

from rl.checkpoint.checkpoint import Checkpoint, open_checkpoint
from rl.checkpoint.manifest import MANIFEST, CheckpointError, DamagedError
from rl.checkpoint.remote import RemoteCheckpoints, RemoteError
from rl.checkpoint.store import CHECKPOINTS, CheckpointStore
from rl.config.errors import ConfigError
from rl.config.file import stored_settings, to_dict, with_defaults
from rl.config.run import RunConfig
from rl.learner.partition import require_loadable
from rl.learner.rank_files import LearnerStateError
from rl.run.recomputation import as_before

log = logging.getLogger(__name__)

MEANING = (  # keys that a resumed run may not change unless told; how long, how fast and where it runs may change
    *(
        "seed",
        "init_from",
        "policy.",
        "data.train.",
        "data.held_out.",
        "data.quickstart.",
        "data.bad_rows",
        "video.coarse.",
    ),
    *("retrieval.", "prompt.", "rewards.", "scoring.calls", "algorithm."),
    *("rollout.group_size", "rollout.tasks_per_step", "rollout.max_new_tokens", "rollout.temperature"),
    *("rollout.engine.max_model_len", "learner.freeze_vision", "learner.updates_per_step", "learner.optimizer."),
    *("cold_start.enabled", "cold_start.traces.", "cold_start.steps", "cold_start.batch_size", "cold_start.lr"),
    *("cold_start.window_jitter_s", "cold_start.fps_jitter", "cold_start.seed", "cold_start.looks"),
    *("cold_start.window_shift_s", "cold_start.misread", "trainer.max_policy_lag"),
    *("finetune.sources.", "finetune.batch_size", "finetune.max_tokens", "finetune.image_pixels"),
)
ABSENT = object()  # a key that a configuration does not have
LONGEST = 200  # characters of a value that are shown


@dataclass(frozen=True, slots=True)
class Change:
    """A key that a checkpoint's configuration and the present one do not agree on."""

    key: str
    before: Any
    now: Any  # ABSENT, as in `before`: there is no such key, as of a reward that only one of them has
    changes_meaning: bool  # of the run: with it, what is learned before and after is not one experiment

    def __str__(self) -> str:
        before, now = ("(none)" if value is ABSENT else _briefly(value) for value in (self.before, self.now))
        return f"{self.key}: {before} -> {now}"


def find_checkpoint(
    config: RunConfig,
    store: CheckpointStore,
    remote: RemoteCheckpoints | None = None,
    say: Callable[[str], None] = log.warning,
) -> Checkpoint | None:
    """The checkpoint to go on from, or None to start afresh.

    Args:
        remote: also looked into; what is newer or better there is brought here.
        say: takes a line for the user: checkpoints that are passed over, and why; settings that differ from the
            checkpoint's, all of them.
    Raises:
        ConfigError: `resume` names a path that is not a valid checkpoint, checkpoints are there but none is valid, the
            remote does not answer, these learner ranks could not go on from it, or the checkpoint is of a run that
            meant something else, and `resume_changed` does not allow it.
    """
    if config.resume == "never":
        return None
    try:
        found = newest_valid(store, remote, say) if config.resume == "auto" else open_checkpoint(config.resume)
    except CheckpointError as error:
        raise ConfigError(f"resume: {error}") from error
    if found:
        settings = stored_settings(found.config_yaml, f"resume: {found.folder}/config.yaml")
        _refuse_changed(config_changes(settings, to_dict(as_before(config, settings))), found, config, say)
        try:
            require_loadable(found.folder, config.learner.zero_stage, config.learner.num_ranks)
        except LearnerStateError as error:
            raise ConfigError(f"resume: {error}") from error
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

    Raises:
        ConfigError: it does not answer.
    """
    if not config.trainer.remote:
        return None
    try:
        remote = RemoteCheckpoints(config.trainer.remote, config.name)
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


def config_changes(old: Mapping[str, Any], new: Mapping[str, Any], meaning: tuple[str, ...] = MEANING) -> list[Change]:
    """Where two configurations, as plain dictionaries, differ, key by key.

    A key that the old one does not have, since its version did not know it, counts as having had its default, for that
    is what was done before there was a choice; it is told only where it changes the meaning.

    Args:
        meaning: keys, or their beginnings, that make a run what it is.
    """
    return [
        change
        for change in _differences(with_defaults(old), new, "", meaning)
        if change.changes_meaning or _has(old, change.key)
    ]


def changed_meaning(old: Mapping[str, Any], new: Mapping[str, Any], meaning: tuple[str, ...] = MEANING) -> list[str]:
    """What differs between two configurations among the keys that make a run what it is: "key: old -> new"."""
    return [str(change) for change in config_changes(old, new, meaning) if change.changes_meaning]


def _refuse_changed(changes: list[Change], found: Checkpoint, config: RunConfig, say: Callable[[str], None]) -> None:
    """Say what differs; refuse what changes the meaning, unless told."""
    changed = [change for change in changes if change.changes_meaning]
    if changes:
        say(f"settings that differ from those of {found.folder.name}:")
    for change in changes:
        say(f"  {change}{'  (changes the meaning of the run)' if change.changes_meaning else ''}")
    if changed and not config.resume_changed:
        raise ConfigError(
            f"resume: {found.folder} is of a run with other settings: {'; '.join(map(str, changed[:3]))}"
            f"{' …' if len(changed) > 3 else ''}. Give this run a name of its own (name=…), or resume=never; with "
            "resume_changed=true it goes on all the same, as a new experiment from that checkpoint"
        )
    if changed:
        say("resume_changed=true: from here on this is a new experiment")


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str, meaning: tuple[str, ...]) -> list[Change]:
    changes = []
    for key in sorted(old.keys() | new.keys(), key=str):
        name, before, now = f"{prefix}{key}", old.get(key, ABSENT), new.get(key, ABSENT)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            changes += _differences(before, now, f"{name}.", meaning)
        elif before != now:
            changes.append(Change(name, before, now, name.startswith(meaning)))
    return changes


def _briefly(value: Any) -> str:
    """A value of any size and depth."""
    short = Repr()
    short.maxlevel, short.maxdict, short.maxlist, short.maxstring, short.maxother = 3, 8, 8, LONGEST, LONGEST
    text = short.repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def _has(settings: Any, key: str) -> bool:
    """Whether a dotted key is there."""
    for part in key.split("."):
        if not isinstance(settings, Mapping) or part not in settings:
            return False
        settings = settings[part]
    return True
