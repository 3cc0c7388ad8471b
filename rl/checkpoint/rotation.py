"""Which checkpoints stay, and how the others are removed."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from rl.checkpoint.manifest import explained

log = logging.getLogger(__name__)


def kept_steps(steps: Iterable[int], *, last: int, every: int, best: int | None) -> list[int]:
    """Of the steps that have a checkpoint, those that keep it, newest first.

    Args:
        last: the newest so many stay.
        every: multiples of it stay; 0: none for that reason.
        best: this one stays; None: none for that reason.
    """
    newest_first = sorted(steps, reverse=True)
    return [
        step
        for index, step in enumerate(newest_first)
        if index < last or step == best or (every > 0 and step % every == 0)
    ]


def move_away(folder: Path, away: Path) -> None:
    """Give a checkpoint that is removed another name first: half of one must not bear its own."""
    _try_to_remove(folder, lambda: folder.rename(away))


def remove(folder: Path) -> None:
    """Remove a folder; where that fails it is logged, for the save itself has succeeded."""
    _try_to_remove(folder, lambda: shutil.rmtree(folder))


def _try_to_remove(folder: Path, remove: Callable[[], object]) -> None:
    try:
        remove()
    except FileNotFoundError:  # it is gone, or its renaming has failed and was logged
        pass
    except OSError as error:
        log.warning("%s: too old, but could not be removed: %s", folder, explained(error))
