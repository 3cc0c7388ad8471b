"""A command's arguments, `CONFIG... [KEY=VALUE]...`: files and overrides told apart, lost equals signs explained."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rl.config.errors import ConfigError, require, shown
from rl.config.installation import found_file
from rl.config.keys import is_known, nearest_key

SURE = 0.8  # a word without "=" that looks so much like a key is meant as one


def split_inputs(inputs: Sequence[str]) -> tuple[list[str], list[str]]:
    """YAML files and `key=value` overrides, each in order.

    Raises:
        ConfigError: a key stands without `=` before its value, or no file is named.
    """
    for place, item in enumerate(inputs):
        _refuse_loose_key(item, inputs[place + 1 :])
    paths = [item for item in inputs if "=" not in item]
    require(bool(paths), "command line: name at least one YAML file, e.g. configs/quickstart.yaml, or quickstart alone")
    return paths, [item for item in inputs if "=" in item]


def _refuse_loose_key(item: str, following: Sequence[str]) -> None:
    """`trainer.steps 3`, `trainer.steps = 3` and `trainer.steps= 3` are `trainer.steps=3`."""
    key, equals, value = item.partition("=")
    if value or os.path.exists(found_file(item)) or not (meant := _meant(key)):
        return
    rest = [word for word in following[:2] if word != "="]
    if equals and (not rest or not _is_value(rest[0])):
        return  # an empty value, which a text may have
    value = rest[0] if rest and _is_value(rest[0]) else "VALUE"
    raise ConfigError(f"command line: {shown(item)} has no value; did you mean {meant}={value}?")


def _meant(key: str) -> str | None:
    return key if is_known(key) else nearest_key(key, cutoff=SURE)


def _is_value(word: str) -> bool:
    """Neither an override nor a file."""
    return "=" not in word and not word.endswith((".yaml", ".yml", ".json")) and not Path(word).is_file()
