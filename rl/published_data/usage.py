"""What to do with a prepared set: a YAML file for the next command, and the command."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from rl.published_data.catalogue import PublishedSet, Use
from rl.published_data.reading import ReadFile


def write_usage(published: PublishedSet, home: Path, read: Sequence[ReadFile], clips: Path | None) -> list[str]:
    """Write NAME.yaml (of a benchmark one for each split) into the folder; the commands that take it.

    Args:
        clips: the status of videos, which runs honour; None: they were not checked.
    """
    if published.use is Use.BENCHMARK:
        return [_evaluation(published, home, one, len({other.split for other in read}) > 1) for one in read]
    quarantine = {"quarantine": _absolute(clips)} if clips else {}
    if published.use is Use.CONVERSATIONS:
        sources = {
            _key(one.path): {"format": published.format, "path": _absolute(one.path), "media_root": _absolute(one.root)}
            for one in read
        }
        content: dict[str, Any] = {"data": quarantine, "finetune": {"sources": sources}}
        file = _write(home / f"{published.name}.yaml", content)
        return [
            f"dynframe check configs/flexivideo_qwen3_vl_4b.yaml {file}",
            f"dynframe finetune configs/flexivideo_qwen3_vl_4b.yaml {file}",
        ]
    return [_training(published, home, one, quarantine, len(read) > 1) for one in read]


def _evaluation(published: PublishedSet, home: Path, one: ReadFile, is_one_of_several: bool) -> str:
    name = f"{published.name}-{one.split}" if is_one_of_several else published.name
    section = {"benchmark": published.name, "path": _absolute(one.path), "video_root": _absolute(one.root)}
    file = _write(home / f"{name}.yaml", {"evaluation": section | ({"name": name} if is_one_of_several else {})})
    return f"dynframe eval CONFIG --run RUN {file}"


def _training(
    published: PublishedSet, home: Path, one: ReadFile, quarantine: dict[str, Any], is_one_of_several: bool
) -> str:
    """Rows of a source are one file: of several files each gets a YAML of its own."""
    name = f"{published.name}-{one.path.stem}" if is_one_of_several else published.name
    source = {"format": published.format, "path": _absolute(one.path), "video_root": _absolute(one.root)}
    if published.use is Use.TASKS:
        content = {"data": {"train": source, **quarantine}, "trainer": {"eval_tasks": 0}}
    else:
        content = {"data": quarantine, "cold_start": {"enabled": True, "traces": source}}
    file = _write(home / f"{name}.yaml", content)
    follow = "validate-data" if quarantine else "check"
    return f"dynframe {follow} configs/sd_grpo_qwen3_vl_4b.yaml {file}"


def _write(file: Path, content: dict[str, Any]) -> str:
    head = "# Written by `dynframe prepare`; given after a configuration, it takes the place of its data.\n"
    kept = {section: keys for section, keys in content.items() if keys}
    file.write_text(head + yaml.safe_dump(kept, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return shlex.quote(str(file))


def _absolute(path: Path) -> str:
    return str(path.resolve())


def _key(path: Path) -> str:
    """A name of a source, which metrics have, too."""
    return re.sub(r"\W+", "_", path.name.partition(".")[0]).strip("_").lower() or "rows"
