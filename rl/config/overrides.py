"""Overrides on the command line, `key=value`: a text stands for itself, anything else is read as YAML."""

from __future__ import annotations

import re

import yaml

from rl.config.errors import require, shown
from rl.config.keys import is_known
from rl.config.typed import hint_of
from rl.config.yaml_text import MAX_BYTES, MAX_DEPTH, YAML, compose, refuse_bombs

COMMAND_LINE = "command line"
QUOTED, PLAIN = "'", ""  # styles of scalars


def parse_override(item: str) -> yaml.MappingNode:
    """The tree that an override stands for.

    Raises:
        ConfigError: it has no `=`, or its value is no YAML where its key takes more than a text.
    """
    written, equals, value = item.partition("=")
    require(bool(equals and written), f"{COMMAND_LINE}: {shown(item)} is not of the form key=value")
    key = re.sub(r"\[([^][]*)\]", r".\1", written)
    origin = f"{COMMAND_LINE}: {shown(key)}"
    require(_is_text(item), f"{origin}: not UTF-8 text")
    require(len(item) <= MAX_BYTES, f"{origin}: longer than {MAX_BYTES:,} characters")
    require(key.count(".") < MAX_DEPTH, f"{origin}: nested more than {MAX_DEPTH} deep")
    node = _value(key, value, origin)
    for part in reversed(key.split(".")):
        name = yaml.ScalarNode(f"{YAML}str", part, node.start_mark, node.end_mark, QUOTED)
        node = yaml.MappingNode(f"{YAML}map", [(name, node)], node.start_mark, node.end_mark)
    return node


def _is_text(item: str) -> bool:
    """Whether a configuration can store it: bytes of the command line that are no UTF-8 are surrogates in Python."""
    return not any("\ud800" <= character <= "\udfff" for character in item)


def _value(key: str, value: str, origin: str) -> yaml.Node:
    text = value.strip()
    if not is_known(key):  # whatever it is: the key will be refused
        return yaml.ScalarNode(f"{YAML}str", text, style=QUOTED)
    if hint_of(key) is str and not text.startswith(("'", '"')):
        is_home = text == "~"  # of a shell, not the null of YAML
        return yaml.ScalarNode(f"{YAML}str", text, style=QUOTED if is_home or not text else PLAIN)
    refuse_bombs(value, origin)
    return compose(value, origin) or yaml.ScalarNode(f"{YAML}null", "", style=PLAIN)
