"""YAML that others may have written: read within bounds, and never more than it says.

A file or value is refused before anything is built of it: other than regular UTF-8 files, more than a megabyte, nesting
that would crash a parser, tags, a second document, and interpolations that could carry a secret into a checkpoint.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from rl.config.errors import ConfigError, first_line, require, shown

MAX_BYTES, MAX_DEPTH = 2**20, 32  # of a YAML file: more than anybody writes, and less than its parsers choke on
FROM_ENVIRONMENT = re.compile(r"\$\{oc\.env:DYNFRAME_[A-Z0-9_]+(?:,[^${}]*)?\}")


def plain_yaml(text: str, origin: str) -> dict[str, Any]:
    """The keys and values of a YAML text that others may have written: what stands there, of bounded depth.

    Raises:
        ConfigError: it is something else, or builds more than it says (tags, aliases).
    """
    refuse_bombs(text, origin, aliases=False)
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{origin}: not readable as YAML: {first_line(error)}") from error
    require(isinstance(values, dict), f"{origin}: expected keys and values at the top level")
    return values


def read_text(path: Path) -> str:
    """Of a regular file: a pipe would never end, and a device would be read until memory is full."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            require(stat.S_ISREG(os.fstat(file.fileno()).st_mode), f"{path}: not a regular file")
            raw = file.read(MAX_BYTES + 1)
        require(len(raw) <= MAX_BYTES, f"{path}: larger than {MAX_BYTES:,} bytes, which no configuration needs")
        return raw.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such configuration file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not readable as YAML: it must be UTF-8 text ({error.reason})") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def refuse_bombs(text: str, origin: str, *, aliases: bool = True) -> None:
    """Nesting is counted before anything is built: libyaml's own recursion ends in a crash of the process."""
    depth = documents = 0
    for event in _events(text, origin):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        documents += isinstance(event, yaml.DocumentStartEvent)
        where = f"{origin}, line {event.start_mark.line + 1}"
        require(depth <= MAX_DEPTH, f"{where}: nested more than {MAX_DEPTH} deep")
        require(documents <= 1, f"{where}: a second document begins (---); one is expected")
        require(aliases or not isinstance(event, yaml.AliasEvent), f"{where}: an alias (*) is not allowed here")


def refuse_interpolations(text: str, origin: str) -> None:
    """What a value is replaced by is written into config.yaml of the run and of every checkpoint, and into its report:
    variables of ours may be, HOME, AWS_SECRET_ACCESS_KEY and the like may not."""
    for event in _events(text, origin):
        if isinstance(event, yaml.ScalarEvent) and "${" in FROM_ENVIRONMENT.sub("", event.value):
            raise ConfigError(
                f"{origin}, line {event.start_mark.line + 1}: {shown(event.value)}: of interpolations only "
                "${oc.env:DYNFRAME_NAME,default} is allowed, for values end up in checkpoints and reports; write it out"
            )


def _events(text: str, origin: str) -> Iterator[yaml.Event]:
    try:
        yield from yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeEncodeError) as error:
        raise ConfigError(f"{origin}: not readable as YAML: {first_line(error)}") from error
