"""Imports that have worked, remembered for as long as nothing has changed of what they depend on."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

OWN = Path(__file__).parents[1]  # the code that the imports are of
CPU_LINES = ("model name", "flags", "Features")  # of /proc/cpuinfo: a home folder may be that of several machines


def environment_key(statements: Mapping[str, str]) -> str:
    """Changes with what is imported, with Python, with the processor, when a package is installed, removed or updated,
    and with our own files."""
    told = [json.dumps(dict(statements)), sys.version, sys.prefix, *_processor()]
    for folder in sys.path:
        try:
            with os.scandir(folder or ".") as entries:
                told += sorted(f"{e.name} {e.stat().st_mtime_ns}" for e in entries if e.name.endswith(".dist-info"))
        except OSError:
            continue  # not a folder
    for folder, _, names in os.walk(OWN):
        told += [f"{folder}/{name} {_changed_ns(folder, name)}" for name in sorted(names) if name.endswith(".py")]
    return hashlib.sha256("\n".join(told).encode(errors="replace")).hexdigest()


def remembered(key: str) -> dict[str, float]:
    """{subject: when its import worked, in seconds since the epoch} under this key."""
    try:
        told = json.loads(_memory().read_text(encoding="utf-8"))
        if told["key"] != key:
            return {}
        return {str(subject): float(when_s) for subject, when_s in told["worked"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def remember(key: str, worked: Iterable[str], before: Mapping[str, float]) -> None:
    """Keep what has worked now beside what has before; where nothing can be written, nothing is remembered."""
    told = {"key": key, "worked": {**before, **dict.fromkeys(worked, round(time.time()))}}
    home = _memory()
    draft = home.with_name(f".{home.name}.{os.getpid()}")
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(told), encoding="utf-8")
        draft.replace(home)
    except OSError:
        with suppress(OSError):
            draft.unlink()


def _memory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dynframe" / "imports.json"


def _processor() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return list(dict.fromkeys(line for line in lines if line.startswith(CPU_LINES)))


def _changed_ns(folder: str, name: str) -> int:
    try:
        return os.stat(os.path.join(folder, name)).st_mtime_ns
    except OSError:
        return 0
