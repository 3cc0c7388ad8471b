"""The files and folders that a training run reads, by the key that names them."""

from __future__ import annotations

import os
from pathlib import Path

from rl.config.run import RunConfig
from rl.user_code.neighbours import neighbours_of
from rl.user_code.reference import parse_reference


def files_read(config: RunConfig) -> dict[str, str]:
    """Paths by key, as the configuration has them; what the run makes itself is not among them."""
    sources = {"data.train": config.data.train}
    if config.trainer.eval_tasks:
        sources["data.held_out"] = config.data.held_out
    if config.cold_start.enabled:
        sources["cold_start.traces"] = config.cold_start.traces
    named = {
        "policy.path": "" if config.policy.is_on_hub else config.policy.path,
        "policy.adapter": config.policy.adapter,
        "init_from": config.init_from,
        "data.quarantine": config.data.quarantine,
        "learner.deepspeed_config": config.learner.deepspeed_config,
        "resume": "" if config.resume in ("auto", "never") else config.resume,
    }
    code = {f"rewards.{name}.fn": term.fn for name, term in config.rewards.items()}
    for name, source in config.finetune.sources.items():
        media = source.media_root or _folder_of(source.path)
        key = f"finetune.sources.{name}"
        named |= {f"{key}.path": source.path, f"{key}.media_root": media}
    for section, source in sources.items():
        if source.format != "quickstart":
            videos = source.video_root or _folder_of(source.path)
            named |= {f"{section}.path": source.path, f"{section}.video_root": videos}
        code[f"{section}.format"] = source.format
    for key, text in code.items():
        reference = parse_reference(text)
        if reference is not None and reference.is_file:
            named[key] = reference.source
            beside = neighbours_of(Path(reference.source))
            named |= {f"{key}, which imports {path.name}": str(path) for path in beside}
    return {key: path for key, path in named.items() if path}


def _folder_of(path: str) -> str:
    """Where the media of an annotation file, or of a repository's copy, lie; empty: it is not there."""
    if os.path.isdir(path):
        return path
    return os.path.dirname(path) if os.path.exists(path) else ""
