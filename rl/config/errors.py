"""The error of every configuration that cannot be used, and the checks that raise it."""

from __future__ import annotations

import re
from collections.abc import Iterable

LONGEST = 1000  # characters of a message


class ConfigError(ValueError):
    """The configuration cannot be used; the message names file, key and remedy."""


def require(condition: bool, message: str) -> None:
    """
    Raises:
        ConfigError: the condition does not hold.
    """
    if not condition:
        raise ConfigError(message if len(message) <= LONGEST else f"{message[:LONGEST]}…")


def shown(text: str) -> str:
    """A text as a message quotes it."""
    return repr(text) if len(text) <= 100 else f"{text[:100]!r}…"


def require_one_of(key: str, value: str, choices: Iterable[str]) -> None:
    """
    Raises:
        ConfigError: the value is not one of the choices; names them.
    """
    choices = sorted(choices)
    require(value in choices, f"{key} must be one of {', '.join(choices)}, got {value!r}")


def require_folder_name(key: str, name: str) -> None:
    """
    Raises:
        ConfigError: the value could leave the folder it is to name.
    """
    require(
        re.fullmatch(r"[\w.-]{1,100}", name) is not None and name not in (".", ".."),
        f"{key} must be letters, digits, '_', '-' or '.', 100 at most, for it names a folder in output_dir; got "
        f"{shown(name)}",
    )
