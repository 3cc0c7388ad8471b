"""Which checkpoints lie in a folder, by their names and their scores; no file is compared with its manifest here."""

from __future__ import annotations

import re
from pathlib import Path

from rl.checkpoint.checkpoint import Score, read_score, step_of
from rl.checkpoint.manifest import MANIFEST


def newest_first(folder: Path) -> list[Path]:
    """Every checkpoint, whole or not."""
    homes = {path.name: path for path in folder.glob("step_*") if path.is_dir()}
    for replaced in folder.glob(".replaced_step_*"):  # a kill between two renames left it without its name
        homes.setdefault(replaced.name.removeprefix(".replaced_"), replaced)
    return sorted((path for name, path in homes.items() if re.fullmatch(r"step_\d+", name)), key=step_of)[::-1]


def complete(folder: Path) -> dict[int, Path]:
    """Those that have a manifest, by step, newest first."""
    return {step_of(path): path for path in newest_first(folder) if (path / MANIFEST).is_file()}


def best_before(folder: Path, metric: str, step: int) -> tuple[Path, Score] | None:
    """The one with the best score of `metric` among those before `step`; the first of equals."""
    scores = {path: read_score(path) for path in reversed(newest_first(folder))}
    competing = [
        (path, score)
        for path, score in scores.items()
        if score is not None and score.metric == metric and step_of(path) < step
    ]
    return max(competing, key=lambda pair: pair[1].rank, default=None)
