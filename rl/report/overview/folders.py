"""Which runs there are: folders that are named, and the runs that lie in folders that are named."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from rl.config.errors import ConfigError

MARKS = ("metrics.jsonl", "config.yaml", "trajectories", "held_out")  # one of them makes a folder a run's
DEEPEST = 4  # folders between what is named and a run
MOST_RUNS = 2_000  # on one page
MOST_FOLDERS = 20_000  # looked into, in all


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's, or has been meant to be."""
    return any((folder / mark).exists() for mark in MARKS)


def require_folders(given: Sequence[Path]) -> None:
    """
    Raises:
        ConfigError: one of them is no folder.
    """
    for folder in given:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder; give runs, such as runs/quickstart, or their folder")


def find_runs(given: Sequence[Path]) -> tuple[list[Path], bool]:
    """The runs, sorted within each folder that is named; and whether there are more than are looked for.

    A folder that is named and holds no run counts as one: it says itself what it lacks.
    """
    found: dict[Path, None] = {}
    looked = 0
    for folder in dict.fromkeys(path.absolute() for path in given):
        before = len(found)
        for inner in _within(folder, DEEPEST):
            looked += 1
            if inner is not None:
                found[inner] = None
            if len(found) >= MOST_RUNS or looked >= MOST_FOLDERS:
                return list(found), True
        if len(found) == before:
            found[folder] = None
    return list(found), False


def run_id(run: Path) -> str:
    """A short name for addresses, the same as long as the run lies where it does."""
    return hashlib.sha256(os.fsencode(run)).hexdigest()[:12]


def _within(folder: Path, deeper: int) -> Iterator[Path | None]:
    """The runs in a folder; None for each folder that is none. What is hidden, or a link, is passed over."""
    if is_run(folder):
        yield folder
        return
    yield None
    if not deeper:
        return
    try:
        with os.scandir(folder) as entries:
            folders = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return
    for name in sorted(name for name in folders if not name.startswith(".")):
        yield from _within(folder / name, deeper - 1)
