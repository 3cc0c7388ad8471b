"""Keys that earlier versions called otherwise, or had and there are no more.

A configuration that somebody wrote with an old key is refused, in one line, with the new one; a configuration that a
run or a checkpoint has stored is translated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED_KEYS: dict[str, str] = {  # key, or section with all keys in it, of 0.3.0 -> since 0.4.0
    "video.v0": "video.coarse",
    "video.store_bytes": "video.frame_cache_bytes",
}
RENAMED_VALUES: dict[str, dict[str, str]] = {  # key (of today) -> value of 0.3.0 -> since 0.4.0
    "trainer.best_metric": {
        "held_out/calls": "held_out/granted_calls",
        "-held_out/calls": "-held_out/granted_calls",
    },
}
SWITCHES: dict[str, tuple[str, str]] = {  # key that was true or false in 0.3.0 -> what these stand for since 0.4.0
    "learner.activation_checkpointing": ("all", "none"),
}

REMOVED_KEYS: dict[str, str] = {  # key of 0.3.0 -> why there is none since 0.4.0
    "weight_sync.verify_tensors": "every parameter is compared after every push",
}


def new_name(key: str) -> str | None:
    """What a dotted key is called now; None if it was never renamed."""
    for old, new in _longest_first():
        if key == old or key.startswith(f"{old}."):
            return new + key[len(old) :]
    return None


def translated(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Stored settings, as plain dictionaries, under the names of today; where a key has both, the new one counts."""
    today = dict(settings)
    for old, new in _longest_first():
        today = _moved(today, old.split("."), new.split("."))
    for old in REMOVED_KEYS:
        path = old.split(".")
        today = _without(today, path) if _at(today, path) is not None else today
    for key, renamed in RENAMED_VALUES.items():
        value = _at(today, key.split("."))
        if isinstance(value, str) and value in renamed:
            today = _with(today, key.split("."), renamed[value])
    for key, (yes, no) in SWITCHES.items():
        value = _at(today, key.split("."))
        if isinstance(value, bool):
            today = _with(today, key.split("."), yes if value else no)
    return today


def _longest_first() -> list[tuple[str, str]]:
    """A key renamed by itself before the section it is in."""
    return sorted(RENAMED_KEYS.items(), key=lambda pair: -len(pair[0]))


def _moved(settings: dict[str, Any], old: list[str], new: list[str]) -> dict[str, Any]:
    found = _at(settings, old)
    if found is None:
        return settings
    settings = _without(settings, old)
    there = _at(settings, new)
    if isinstance(found, Mapping) and isinstance(there, Mapping):
        return _with(settings, new, {**found, **there})
    return settings if there is not None else _with(settings, new, found)


def _at(settings: Any, path: list[str]) -> Any:
    for part in path:
        settings = settings.get(part) if isinstance(settings, Mapping) else None
    return settings


def _with(settings: Mapping[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    first, *rest = path
    below = settings.get(first)
    return {**settings, first: _with(below if isinstance(below, Mapping) else {}, rest, value) if rest else value}


def _without(settings: Mapping[str, Any], path: list[str]) -> dict[str, Any]:
    first, *rest = path
    left = {key: value for key, value in settings.items() if key != first}
    if rest and (below := _without(settings[first], rest)):
        left[first] = below
    return left
