"""The files and folders that a training run reads, by the key that names them."""

from __future__ import annotations

import os
from pathlib import Path

from rl.config.data import SourceConfig
from rl.config.run import RunConfig
from rl.user_code.neighbours import neighbours_of
from rl.user_code.reference import parse_reference


def files_read(config: RunConfig) -> dict[str, str]:
    """Paths by key, as the configuration has them; what the run makes itself is not among them."""
    named = {
        "policy.path": "" if config.policy.is_on_hub else config.policy.path,
        "policy.adapter": config.policy.adapter,
        "init_from": config.init_from,
        "data.quarantine": config.data.quarantine,
        "learner.deepspeed_config": config.learner.deepspeed_config,
        "resume": "" if config.resume in ("auto", "never") else config.resume,
    }
    code = {f"rewards.{name}.fn": term.fn for name, term in config.rewards.items()}
    code |= {f"retrieval.tools[{index}]": name for index, name in enumerate(config.retrieval.tools)}
    for name, source in config.finetune.sources.items():
        named[f"finetune.sources.{name}.path"] = source.path
    for section, source in _sources(config).items():
        if source.format != "quickstart":
            named[f"{section}.path"] = source.path
        code[f"{section}.format"] = source.format
    named |= media_roots(config, known_only=True)
    for key, text in code.items():
        reference = parse_reference(text)
        if reference is not None and reference.is_file:
            named[key] = reference.source
            beside = neighbours_of(Path(reference.source))
            named |= {f"{key}, which imports {path.name}": str(path) for path in beside}
    return {key: path for key, path in named.items() if path}


def media_roots(config: RunConfig, *, known_only: bool = False) -> dict[str, str]:
    """The folders that videos and images lie under, by key; where none is named, that of the annotations.

    Args:
        known_only: leave the latter out where the annotations are not on this machine.
    """
    asked = {
        f"{section}.video_root": (one.path, one.video_root)
        for section, one in _sources(config).items()
        if one.format != "quickstart"
    }
    for name, one in config.finetune.sources.items():
        asked[f"finetune.sources.{name}.media_root"] = (one.path, one.media_root)
    is_known = {key: not known_only or os.path.exists(path) for key, (path, _) in asked.items()}
    roots = {key: root or (_folder_of(path) if is_known[key] else "") for key, (path, root) in asked.items()}
    return {key: root for key, root in roots.items() if root}


def _folder_of(path: str) -> str:
    """Where the media of an annotation file, or of a repository's copy, lie."""
    return path if os.path.isdir(path) else os.path.dirname(path)


def _sources(config: RunConfig) -> dict[str, SourceConfig]:
    """The data sets that a run reads, by section."""
    sources = {"data.train": config.data.train}
    if config.trainer.eval_tasks:
        sources["data.held_out"] = config.data.held_out
    if config.cold_start.enabled:
        sources["cold_start.traces"] = config.cold_start.traces
    return sources
