"""A YAML text, value by value as the schema types it: a text key keeps what stands there, a number key refuses what
YAML versions read differently, and every refusal names key, file and line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

import yaml

from rl.config.errors import ConfigError, require, shown
from rl.config.paths import as_path
from rl.config.renamed import SWITCHES
from rl.config.run import RunConfig
from rl.config.scalars import FALSE, NULL, TRUE, advice, read_number
from rl.config.yaml_text import entries, free_value, require_known_tag, substituted

TYPES = {str: "a text", int: "an integer", float: "a number", bool: "true or false"}
UNSET = "???"  # the default of a key that has none
YES, NO = TRUE | {"y", "t", "1"}, FALSE | {"n", "f", "0"}  # where a key can be nothing else


@dataclass(slots=True)
class TypedSettings:
    """What one file, or one override, sets."""

    origin: str  # the file's path, or "command line"
    folder: Path  # that code is named relative to
    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)  # by dotted key; empty on the command line

    def line(self, key: str) -> str:
        """Where a key stands, as the end of a message."""
        return f" (line {self.lines[key]})" if key in self.lines else ""


def typed_settings(node: yaml.MappingNode, origin: str, folder: Path, *, in_file: bool) -> TypedSettings:
    """Values of all keys, each of its type.

    Raises:
        ConfigError: one cannot be read as its key's type.
    """
    settings = TypedSettings(origin, folder)
    if in_file:
        settings.lines = dict(_lines(node, ""))
    settings.values = _section(RunConfig, node, "", settings)
    return settings


_NAMED = re.compile(r"rewards\.\*|finetune\.sources\.\*")  # in messages: the section that a user has named


def built(declared: type, values: Mapping[str, Any], key: str = "") -> Any:
    """The section that typed values make, the sections in it first; what they leave out has its default.

    Raises:
        ConfigError: a value is missing, or out of its range.
    """
    hints, arguments = _hints(declared), {}
    for name, value in values.items():
        hint, below = hints[name], f"{key}.{name}" if key else name
        if is_dataclass(hint):
            value = built(hint, value, below)
        elif get_origin(hint) is dict and is_dataclass(get_args(hint)[1]):
            value = {term: built(get_args(hint)[1], of_term, f"{below}.{term}") for term, of_term in value.items()}
        arguments[name] = value
    try:
        section = declared(**arguments)
    except ConfigError as error:
        raise ConfigError(_NAMED.sub(lambda _: key, str(error)) if key else str(error)) from error
    missing = [each.name for each in fields(declared) if getattr(section, each.name) == UNSET]
    require(
        not missing, f"{key}: {', '.join(missing)} has to be given: the function, as answer or path/file.py:function"
    )
    return section


def skeleton(node: yaml.Node, key: str = "") -> Any:
    """The keys of a YAML text as nested dictionaries, without values, and without what stands below a single value."""
    if isinstance(node, yaml.MappingNode) and (not key or hint_of(key) not in TYPES):
        return {name: skeleton(value, f"{key}.{name}" if key else name) for name, value in entries(node)}
    return None


def _lines(node: yaml.Node, prefix: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for name, value in entries(node):
            yield f"{prefix}{name}", value.start_mark.line + 1
            yield from _lines(value, f"{prefix}{name}.")


def _value(hint: Any, node: yaml.Node, key: str, settings: TypedSettings) -> Any:
    if is_dataclass(hint):
        return _section(hint, node, key, settings)
    if get_origin(hint) is list:
        if not isinstance(node, yaml.SequenceNode):
            _refuse(node, key, f"a list, as [{'0.9, 0.95' if get_args(hint)[0] is float else 'a, b'}]", settings)
        return [_value(get_args(hint)[0], item, f"{key}[{place}]", settings) for place, item in enumerate(node.value)]
    if get_origin(hint) is dict:
        return {
            name: _value(get_args(hint)[1], v, f"{key}.{name}", settings) for name, v in _entries(node, key, settings)
        }
    if hint is Any:
        return _free(node, key, settings)
    return _scalar(hint, node, key, settings)


def _section(declared: type, node: yaml.Node, key: str, settings: TypedSettings) -> dict[str, Any]:
    hints, prefix = _hints(declared), f"{key}." if key else ""
    return {
        name: _value(hints.get(name, Any), value, f"{prefix}{name}", settings)
        for name, value in _entries(node, key, settings)
    }


def _entries(node: yaml.Node, key: str, settings: TypedSettings) -> Iterator[tuple[str, yaml.Node]]:
    """Of a section; one whose keys are all commented out has none."""
    if isinstance(node, yaml.ScalarNode) and not node.style and node.value == "":
        return iter(())
    if not isinstance(node, yaml.MappingNode):
        _refuse(node, key, "keys and values", settings)
    return entries(node)


def _scalar(hint: type, node: yaml.Node, key: str, settings: TypedSettings) -> Any:
    if not isinstance(node, yaml.ScalarNode):
        _refuse(node, key, TYPES[hint], settings)
    require_known_tag(node, key, settings.origin)
    text = _text(node, key, settings)
    if not node.style and text.lower() in NULL:
        _refuse_null(hint, text, key, settings)
    if hint is str:
        require(text != UNSET, f"{settings.origin}: {key} has to be given: ??? stands for a value{settings.line(key)}")
        return _located(key, _switched(key, node, text), settings)
    if hint is bool and text.lower() in YES | NO:
        return text.lower() in YES
    try:
        number = read_number(hint, text)
    except OverflowError as error:
        raise ConfigError(f"{settings.origin}: {key} {error}{settings.line(key)}") from error
    if number is None:
        _refuse(node, key, TYPES[hint], settings, text, "" if hint is bool else advice(text, hint))
    return number


def _free(node: yaml.Node, key: str, settings: TypedSettings) -> Any:
    try:
        return free_value(node, key, settings.origin, interpolated=True)
    except ConfigError as error:
        raise ConfigError(f"{error}{settings.line(key)}") from error


def _text(node: yaml.ScalarNode, key: str, settings: TypedSettings) -> str:
    return substituted(node.value, f"{settings.origin}: {key}")


def _switched(key: str, node: yaml.ScalarNode, text: str) -> str:
    """What true or false stands for, of a key that once was one of them."""
    if key not in SWITCHES or node.style or text.lower() not in YES | NO:
        return text
    yes, no = SWITCHES[key]
    return yes if text.lower() in YES else no


def _located(key: str, text: str, settings: TypedSettings) -> str:
    try:
        return as_path(key, text, settings.folder)
    except ConfigError as error:
        raise ConfigError(f"{settings.origin}: {error}{settings.line(key)}") from error


def _refuse_null(hint: type, text: str, key: str, settings: TypedSettings) -> None:
    """A key without a value, which YAML makes null."""
    what = "has no value" if not text else f"is {text}, which is no value in YAML"
    instead = f"'' for an empty text, '{text or 'null'}' for that text" if hint is str else TYPES[hint]
    raise ConfigError(
        f"{settings.origin}: {key!r} {what}; write {instead}, or leave the key out for its default{settings.line(key)}"
    )


def _refuse(
    node: yaml.Node, key: str, wanted: str, settings: TypedSettings, text: str | None = None, hint: str = ""
) -> NoReturn:
    if isinstance(node, yaml.ScalarNode):
        got = shown(node.value if text is None else text)
    else:
        got = "a list" if isinstance(node, yaml.SequenceNode) else "keys and values"
    named = repr(key) if key else "the file"
    raise ConfigError(f"{settings.origin}: {named} must be {wanted}, got {got}{hint}{settings.line(key)}")


def hint_of(key: str) -> Any:
    """The type of a dotted key; None if there is no such key."""
    hint: Any = RunConfig
    for part in key.split("."):
        if is_dataclass(hint):
            hint = _hints(hint).get(part)
        else:
            hint = get_args(hint)[1] if get_origin(hint) is dict else Any if hint is Any else None
    return hint


@cache
def _hints(declared: type) -> dict[str, Any]:
    hints = get_type_hints(declared)
    return {each.name: hints[each.name] for each in fields(declared)}
