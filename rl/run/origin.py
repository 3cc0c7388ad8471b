"""`init_from`: a new phase begins with the weights of an earlier run, and with nothing else of it.

A checkpoint's policy is kept in the cache (hard links where the disk allows it, else copies), under a name that follows
from its weights: the earlier run may go on, and remove its checkpoints, while this one lives.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rl.checkpoint.checkpoint import POLICY_FOLDER, step_of
from rl.checkpoint.manifest import MANIFEST, CheckpointError, read_manifest
from rl.checkpoint.pointers import BEST, LATEST, pointed_to
from rl.checkpoint.store import CHECKPOINTS, CheckpointStore
from rl.config.errors import ConfigError, require
from rl.config.file import stored_settings
from rl.config.run import RunConfig
from rl.run.prepare.built_once import built_once, fingerprint
from rl.run.resume import checkpoint_of

ANCESTRY = "ancestry.json"  # of a run, and of a kept policy: what it began with, the nearest first
CONFIG = "config.yaml"


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A policy that a phase has begun with."""

    source: str  # its folder: a checkpoint, or a policy's
    run: str  # name of the run that trained it; empty: not known
    step: int | None  # of that run
    weights: str  # twelve hexadecimal digits that change with them


def begun_from(config: RunConfig) -> RunConfig:
    """The configuration with what `init_from` names for its policy; without that key, as it is.

    A run that has begun keeps what it began with, also where `init_from` names a run that has gone on since.

    Raises:
        ConfigError: it names no policy, or something else would make another policy of it.
    """
    if not config.init_from:
        return config
    require(
        not config.cold_start.enabled,
        "init_from begins with weights that have been trained: set cold_start.enabled=false, or name them as "
        "policy.path to have them taught the form of calls before",
    )
    require(not config.policy.adapter, "init_from names the whole policy: leave policy.adapter empty")
    if (told := ancestry(Path(config.policy.path or "."))) and told[0].source == config.init_from:
        return config  # a stored configuration, given again
    if (begun := _as_it_began(config)) is not None:
        return begun
    given = Path(config.init_from)
    given = (given.is_file() and pointed_to(given.parent, given.name)) or given
    require(given.is_dir(), f"init_from: no folder {given}; give a run, a checkpoint of one, or a policy's folder")
    if (given / CHECKPOINTS).is_dir() or (given / MANIFEST).is_file():
        checkpoint, kept = _kept(given, Path(config.cache_dir))
        return _with_policy(config, str(checkpoint), str(kept))
    require(not (given / CONFIG).is_file(), f"init_from: {given} has no checkpoint yet; train it first")
    require(
        (given / "config.json").is_file(),
        f"init_from: {given} is neither a run, nor a checkpoint, nor a policy's folder",
    )
    return _with_policy(config, str(given.absolute()), str(given))


def ancestry(folder: Path) -> tuple[Ancestor, ...]:
    """What a run, or a kept policy, began with, the nearest first; empty where nothing is known."""
    try:
        return tuple(Ancestor(**one) for one in json.loads((folder / ANCESTRY).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return ()


def keep_ancestry(config: RunConfig, run_dir: Path) -> None:
    """Write it into the folder of a run that has `init_from`."""
    if config.init_from:
        folder = Path(config.policy.path)
        _write(ancestry(folder) or (Ancestor(config.init_from, "", None, _weights_of(folder)),), run_dir)


def _as_it_began(config: RunConfig) -> RunConfig | None:
    """With the policy that this run has begun with, if it has, from what is given now."""
    run = Path(config.output_dir) / config.name
    if config.resume == "never" or not (run / CHECKPOINTS).is_dir() or not (run / CONFIG).is_file():
        return None
    settings = stored_settings((run / CONFIG).read_text(encoding="utf-8"), f"resume: {run / CONFIG}")
    source, kept = str(settings.get("init_from", "")), _policy_path(settings)
    given = Path(config.init_from).absolute()
    if not source or not Path(source).is_relative_to(given.parent if given.name in (LATEST, BEST) else given):
        return None
    require(
        Path(kept).is_dir(),
        f"init_from: the policy that this run began with is no longer in {kept}. It was that of {source}: begin a run "
        "of another name with it, or put it back",
    )
    return _with_policy(config, source, kept)


def _kept(given: Path, cache_dir: Path) -> tuple[Path, Path]:
    """The newest valid checkpoint of a run, or the one that is given, and the folder that keeps its policy.

    Raises:
        ConfigError: there is none, or none is whole.
    """
    try:
        published = {} if (given / MANIFEST).is_file() else CheckpointStore(given).published()
        newest = published[max(published)] if published else checkpoint_of(given).folder
        kept = cache_dir / f"init-{_weights_in(newest)}"
        if not kept.is_dir():  # reading gigabytes to compare them is for what is not kept yet
            newest = checkpoint_of(given).folder
            kept = cache_dir / f"init-{_weights_in(newest)}"
    except (ConfigError, CheckpointError) as error:
        raise ConfigError(f"init_from: {error}") from error
    return newest.absolute(), built_once(kept, lambda folder: _keep(newest, folder))


def _keep(checkpoint: Path, folder: Path) -> None:
    settings = stored_settings((checkpoint / CONFIG).read_text(encoding="utf-8"), f"init_from: {checkpoint / CONFIG}")
    own = Ancestor(
        str(checkpoint.absolute()),
        str(settings.get("name", "")),
        step_of(checkpoint.resolve()),
        _weights_in(checkpoint),
    )
    shutil.copytree(checkpoint / POLICY_FOLDER, folder, copy_function=_link_or_copy, dirs_exist_ok=True)
    _write((own, *ancestry(checkpoint.resolve().parent.parent)), folder)


def _link_or_copy(source: str, target: str) -> str:
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)
    return target


def _write(ancestors: tuple[Ancestor, ...], folder: Path) -> None:
    text = json.dumps([asdict(ancestor) for ancestor in ancestors], indent=1)
    (folder / ANCESTRY).write_text(text, encoding="utf-8")


def _weights_in(checkpoint: Path) -> str:
    """By the manifest.

    Raises:
        CheckpointError: it cannot be read.
    """
    weights = (one for one in read_manifest(checkpoint) if one.name.endswith(".safetensors"))
    return fingerprint(sorted((one.name, one.sha256) for one in weights if one.name.startswith(f"{POLICY_FOLDER}/")))


def _weights_of(folder: Path) -> str:
    """Of a policy's folder, by its files' sizes and times."""
    found = [(file.name, file.stat()) for file in sorted(folder.glob("*.safetensors"))]
    return fingerprint([[name, status.st_size, status.st_mtime_ns] for name, status in found])


def _policy_path(settings: Mapping[str, Any]) -> str:
    policy = settings.get("policy")
    return str(policy.get("path", "")) if isinstance(policy, Mapping) else ""


def _with_policy(config: RunConfig, source: str, folder: str) -> RunConfig:
    return replace(config, init_from=source, policy=replace(config.policy, path=folder, revision=""))
