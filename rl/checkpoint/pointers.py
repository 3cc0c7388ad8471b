"""Small files that name a checkpoint, for people and scripts: `latest` and `best`."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from rl.checkpoint.manifest import flush

log = logging.getLogger(__name__)

LATEST, BEST = "latest", "best"


def point(folder: Path, name: str, home: Path) -> None:
    """Let the pointer `name` in `folder` name the checkpoint `home`, in one rename."""
    pointer = folder / f".{name}"
    pointer.write_text(home.name + "\n", encoding="utf-8")
    flush(pointer)
    pointer.rename(folder / name)
    flush(folder)


def pointed_to(folder: Path, name: str) -> Path | None:
    """The checkpoint a pointer names; None where there is no pointer, or one that names no checkpoint of `folder`."""
    pointer = folder / name
    if not pointer.is_file():
        return None
    named = pointer.read_text(encoding="utf-8", errors="replace").strip()
    if not re.fullmatch(r"step_\d+", named):
        log.warning("%s: passed over: it says %.80r, which is no checkpoint's name", pointer, named)
        return None
    return folder / named
