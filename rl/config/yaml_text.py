"""YAML that others may have written: read within bounds, and never more than it says.

A file or value is refused before anything is built of it: other than regular UTF-8 files, more than a megabyte, nesting
that would crash a parser, tags, a second document, keys that stand twice, aliases that explode, and interpolations that
could carry a secret into a checkpoint.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from rl.config.errors import LONGEST, ConfigError, require, shown
from rl.config.installation import shipped_names
from rl.config.scalars import FALSE, HUGE, INTEGER, NULL, NUMBER, TRUE, advice, is_ambiguous, read_number

MAX_BYTES, MAX_DEPTH = 2**20, 32  # of a YAML file: more than anybody writes, and less than its parsers choke on
MAX_VALUES = 100_000  # with every alias written out
FROM_ENVIRONMENT = re.compile(r"\$\{oc\.env:(DYNFRAME_[A-Z0-9_]+)(?:,([^${}]*))?\}")
YAML = "tag:yaml.org,2002:"
KNOWN_TAGS = {f"{YAML}{name}" for name in ("str", "int", "float", "bool", "null", "timestamp", "merge", "value")}
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def plain_yaml(text: str, origin: str) -> dict[str, Any]:
    """The keys and values of a YAML text that others may have written: what stands there, of bounded depth.

    Raises:
        ConfigError: it is something else, or builds more than it says (tags, aliases).
    """
    return free_value(read_tree(text, origin, aliases=False), "", origin)


def read_tree(text: str, origin: str, *, aliases: bool = True) -> yaml.MappingNode:
    """The keys and values of a YAML text as it spells them; without any, an empty tree.

    Raises:
        ConfigError: it is no YAML, has no keys at its top, or a key twice, or builds more than it says.
    """
    refuse_bombs(text, origin, aliases=aliases)
    node = compose(text, origin)
    if node is None:
        return yaml.MappingNode(f"{YAML}map", [])
    require(isinstance(node, yaml.MappingNode), f"{origin}: expected keys and values at the top level")
    return node


def compose(text: str, origin: str) -> yaml.Node | None:
    """The nodes of a YAML text, merge keys (<<) resolved; None if there is nothing in it.

    Raises:
        ConfigError: it is no YAML, or a key stands twice.
    """
    try:
        node = yaml.compose(text, Loader=LOADER)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{origin}: not readable as YAML: {_first_line(error)}") from error
    _check_nodes(node, origin)
    return node


def entries(node: yaml.MappingNode) -> Iterator[tuple[str, yaml.Node]]:
    """Its keys as texts, with their values."""
    return ((name.value, value) for name, value in node.value)


def free_value(node: yaml.Node, key: str, origin: str, *, interpolated: bool = False) -> Any:
    """A value whose type no schema knows: an argument of a user's function, a setting of another program.

    Args:
        key: dotted, for messages; empty at the top.
        interpolated: variables of the environment are replaced.
    Raises:
        ConfigError: a number that YAML versions read differently.
    """
    if isinstance(node, yaml.MappingNode):
        named = ((_free_key(name), value, f"{key}.{name.value}" if key else name.value) for name, value in node.value)
        return {name: free_value(value, below, origin, interpolated=interpolated) for name, value, below in named}
    if isinstance(node, yaml.SequenceNode):
        numbered = ((value, f"{key}[{place}]") for place, value in enumerate(node.value))
        return [free_value(value, below, origin, interpolated=interpolated) for value, below in numbered]
    require_known_tag(node, key, origin)
    text = substituted(node.value, f"{origin}: {key}") if interpolated else node.value
    if node.style:  # quoted, or a block
        return text
    return _untyped(text, f"{origin}: {key}")


def _free_key(name: yaml.ScalarNode) -> str | int:
    """A key is what stands there, "yes" and "1.10" too; only a plain integer is one."""
    is_integer = not name.style and INTEGER.fullmatch(name.value) and len(name.value) < HUGE
    return int(name.value) if is_integer else name.value


def _untyped(text: str, where: str) -> Any:
    """What an unquoted text stands for."""
    if text.lower() in NULL:
        return None
    if text.lower() in TRUE | FALSE:
        return text.lower() in TRUE
    try:
        numbers = [read_number(kind, text) for kind in (int, float)]
    except OverflowError as error:
        raise ConfigError(f"{where} {error}") from error
    if is_ambiguous(text) and not NUMBER.fullmatch(text):
        raise ConfigError(f"{where}: {shown(text)}{advice(text, float)}, or '{text}' if it is a text")
    return next((number for number in numbers if number is not None), text)


def require_known_tag(node: yaml.Node, key: str, origin: str) -> None:
    """
    Raises:
        ConfigError: a value has a tag that makes more of it than a text, a number or a truth value.
    """
    require(node.tag in KNOWN_TAGS, f"{_no_constructor(origin, node)} of {key}")


def _no_constructor(origin: str, node: yaml.Node) -> str:
    line = f"line {node.start_mark.line + 1}" if node.start_mark else "the value"
    return f"{origin}: not readable as YAML: could not determine a constructor for the tag {shown(node.tag)} in {line}"


def substituted(text: str, where: str) -> str:
    """A value with the environment's variables put in: their values are written into config.yaml of the run and of
    every checkpoint, and into its report, so that variables of ours may be; HOME, AWS_SECRET_ACCESS_KEY and the like
    may not.

    Raises:
        ConfigError: another interpolation, or a variable that is not set and has no default.
    """
    if "${" not in text:
        return text

    def value_of(match: re.Match[str]) -> str:
        name, default = match.groups()
        value = os.environ.get(name, default.strip() if default is not None else None)
        require(
            value is not None, f"{where}: the variable {name} is not set; set it, or write ${{oc.env:{name},DEFAULT}}"
        )
        return value

    replaced = FROM_ENVIRONMENT.sub(value_of, text)
    require(
        "${" not in FROM_ENVIRONMENT.sub("", text) and "${" not in replaced,
        f"{where}: {shown(text)}: of interpolations only ${{oc.env:DYNFRAME_NAME,default}} is allowed, for values end "
        "up in checkpoints and reports; write it out",
    )
    return replaced


def variables_in(text: str) -> set[str]:
    """The variables of the environment that a YAML text, or an override, names."""
    return {match.group(1) for match in FROM_ENVIRONMENT.finditer(text)}


def _check_nodes(top: yaml.Node | None, origin: str) -> None:
    """Every mapping's keys are texts that stand once, and no alias makes a small text endless."""
    count, waiting, checked = 0, [(top, frozenset[int]())] if top else [], set[int]()
    while waiting:
        node, above = waiting.pop()
        count += 1
        require(id(node) not in above, f"{origin}: recursive aliases: a value is part of itself")
        require(count <= MAX_VALUES, f"{origin}: alias expansion exceeds {MAX_VALUES:,} values")
        if isinstance(node, yaml.MappingNode) and id(node) not in checked:
            checked.add(id(node))
            _refuse_keys(node, origin)
            node.value = _merged(node, origin)
        if isinstance(node, yaml.CollectionNode):
            require(node.tag in (f"{YAML}map", f"{YAML}seq"), _no_constructor(origin, node))
            below = [value for _, value in node.value] if isinstance(node, yaml.MappingNode) else node.value
            waiting += [(value, above | {id(node)}) for value in below]


def _refuse_keys(node: yaml.MappingNode, origin: str) -> None:
    known: set[str] = set()
    for name, _ in node.value:
        line = f" (line {name.start_mark.line + 1})"
        require(isinstance(name, yaml.ScalarNode), f"{origin}: a key must be a text{line}")
        require_known_tag(name, "a key", origin)
        require(name.value != "", f"{origin}: a value without a key{line}")
        require("${" not in name.value, f"{origin}: {shown(name.value)}: keys are written out, not interpolated{line}")
        require(
            name.value not in known, f"{origin}: not readable as YAML: duplicate key {shown(name.value)[1:-1]}{line}"
        )
        known.add(name.value)


def _merged(node: yaml.MappingNode, origin: str, depth: int = 0) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
    """Its keys with those merged in by `<<`; its own ones win, then those of the mapping that is named first."""
    found = {name.value: (name, value) for name, value in node.value if name.tag != f"{YAML}merge"}
    for name, value in node.value:
        if name.tag == f"{YAML}merge":
            line = f" (line {name.start_mark.line + 1})"
            require(depth < MAX_DEPTH, f"{origin}: merged (<<) more than {MAX_DEPTH} deep{line}")
            for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                require(isinstance(source, yaml.MappingNode), f"{origin}: << takes keys and values{line}")
                _refuse_keys(source, origin)
                for other, its_value in _merged(source, origin, depth + 1):
                    found.setdefault(other.value, (other, its_value))
    return list(found.values())


def read_text(path: Path) -> str:
    """Of a regular file: a pipe would never end, and a device would be read until memory is full."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            require(stat.S_ISREG(os.fstat(file.fileno()).st_mode), f"{path}: not a regular file")
            raw = file.read(MAX_BYTES + 1)
        require(len(raw) <= MAX_BYTES, f"{path}: larger than {MAX_BYTES:,} bytes, which no configuration needs")
        return raw.decode("utf-8-sig")
    except FileNotFoundError as error:
        come = ", ".join(shipped_names())
        raise ConfigError(f"{path}: no such configuration file; with dynframe-rl come, named alone, {come}") from error
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


def _events(text: str, origin: str) -> Iterator[yaml.Event]:
    try:
        yield from yaml.parse(text, Loader=LOADER)
    except (yaml.YAMLError, UnicodeEncodeError) as error:
        raise ConfigError(f"{origin}: not readable as YAML: {_first_line(error)}{_on_tabs(error, text)}") from error


def _on_tabs(error: Exception, text: str) -> str:
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    line = "" if mark is None else [*text.splitlines(), ""][min(mark.line, text.count("\n"))]
    return "; YAML is indented by spaces, not by tabs" if "\t" in line[: len(line) - len(line.lstrip())] else ""


def _first_line(error: Exception) -> str:
    """What a parser complains of, on one line, with the line of the file where it says so."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        return f"{error.problem} (line {error.problem_mark.line + 1})"[:LONGEST]
    return (str(error).strip() or type(error).__name__).splitlines()[0][:LONGEST]
