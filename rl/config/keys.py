"""Which keys there are, and what is said about one that is not: its new name, or the nearest one that exists."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from rl.config.renamed import REMOVED_KEYS, new_name
from rl.config.run import RunConfig

FREE = (  # below them, keys are the user's: arguments of a function, values of a row
    *("rewards.*.args.", "data.train.columns.", "data.held_out.columns.", "cold_start.traces.columns."),
)


NAMED = ("rewards", "finetune.sources")  # sections in which users name the sections


def known_keys(section: type = RunConfig, prefix: str = "") -> list[str]:
    """Every dotted key of the schema; `*` stands for a name the user chooses, as in `rewards.*`."""
    hints = get_type_hints(section)
    keys = []
    for declared in fields(section):
        key, hint = f"{prefix}{declared.name}", hints[declared.name]
        keys.append(key)
        if get_origin(hint) is dict and is_dataclass(get_args(hint)[1]):
            hint, key = get_args(hint)[1], f"{key}.*"
        if is_dataclass(hint):
            keys += known_keys(hint, f"{key}.")
    return keys


def is_known(key: str) -> bool:
    """Whether a dotted key may stand in a configuration."""
    pattern = _pattern(key)
    return pattern in _known() or pattern.startswith(FREE) or pattern.removesuffix(".*") in NAMED


def nearest_key(key: str, cutoff: float = 0.0) -> str | None:
    """The key that looks most like a misspelt one; None if none is as near as `cutoff` (0 to 1)."""
    nearest = next(iter(difflib.get_close_matches(_pattern(key)[:200], _known(), n=1, cutoff=cutoff)), None)
    named = _named(key)
    if nearest and named and nearest.startswith(f"{named[0]}.*"):
        return nearest.replace("*", named[1][:100], 1)
    return nearest


def dotted(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Every dotted key of nested settings, sections before what is in them."""
    for name, value in settings.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{name}.")


def misspelt(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Keys that do not exist, each with what to write instead; of an unknown section only its own name."""
    for name, value in settings.items():
        key = f"{prefix}{name}"
        if is_known(key):
            if isinstance(value, Mapping):
                yield from misspelt(value, f"{key}.")
        elif new_name(key):
            key = _down_to_the_value(key, value)
            yield key, f"since 0.4.0 it is {new_name(key)!r}"
        elif key in REMOVED_KEYS:
            yield key, f"there is none since 0.4.0: {REMOVED_KEYS[key]}"
        else:
            yield key, f"did you mean {nearest_key(key)!r}?"


def _down_to_the_value(key: str, value: Any) -> str:
    """The key of the one value in a section; the section itself if there are several."""
    while isinstance(value, Mapping) and len(value) == 1:
        (name, value), *_ = value.items()
        key = f"{key}.{name}"
    return key


def _pattern(key: str) -> str:
    named = _named(key)
    return f"{named[0]}.*{named[2]}" if named else key


def _named(key: str) -> tuple[str, str, str] | None:
    """A section in which users name the sections, the name, and what stands behind it; None: no such key."""
    for section in NAMED:
        if key.startswith(f"{section}."):
            name, dot, below = key.removeprefix(f"{section}.").partition(".")
            return section, name, dot + below
    return None


@cache
def _known() -> tuple[str, ...]:
    return tuple(known_keys())
