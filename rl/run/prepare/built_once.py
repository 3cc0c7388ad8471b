"""Folders that are made once, cached under a fingerprint of what they were made from, and published by one rename."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rl.run.console.stages import spell_seconds

log = logging.getLogger(__name__)


def fingerprint(made_from: Any) -> str:
    """Twelve hex digits that change with anything in a JSON-like value."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:12]


def built_once(home: Path, build: Callable[[Path], Any], *, doing: str = "") -> Path:
    """`home`; if it is not there yet, built into a draft beside it and renamed, so that it is never half there.

    Args:
        doing: what building it is, for the log; empty: `build` says so itself.
    """
    if home.is_dir():
        return home
    home.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{home.name}-", dir=home.parent))
    started_s = time.perf_counter()
    if doing:
        log.info("%s …", doing)
    try:
        build(draft)
        draft.chmod(0o755)
        draft.rename(home)
        if doing:
            log.info("%s: done in %s", doing, spell_seconds(time.perf_counter() - started_s))
    except OSError:
        if not home.is_dir():  # not merely another process that was faster
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return home
