"""Configuration files: YAML merged left to right, `key=value` on top, into a RunConfig and back.

A key that does not exist is refused with the nearest one that does; whatever a text holds, it builds no more than it
says. The one place that knows omegaconf.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rl.config.errors import LONGEST, ConfigError, require, shown
from rl.config.rewards import RewardTermConfig
from rl.config.run import RunConfig

MAX_BYTES, MAX_DEPTH = 2**20, 32  # of a YAML file: more than anybody writes, and less than its parsers choke on
MOST_SECONDS = 1e8  # three years; clocks and locks overflow somewhere beyond
FROM_ENVIRONMENT = re.compile(r"\$\{oc\.env:DYNFRAME_[A-Z0-9_]+(?:,[^${}]*)?\}")
ABOVE_ZERO = (
    "data.quickstart.duration_s",
    "data.quickstart.native_fps",
    "rollout.engine.gpu_memory_utilization",
    "learner.timeout_s",
    "weight_sync.timeout_s",
    "placement.timeout_s",
)
AT_LEAST_ONE = (  # numbers that are sizes or counts of something there has to be
    "data.quickstart.train_clips",
    "data.quickstart.size",
    "video.coarse.max_pixels",
    "video.coarse.max_visual_tokens",
    "retrieval.max_pixels",
    "rollout.engine.max_num_seqs",
    "rollout.engine.kv_cache_bytes",
    "weight_sync.bucket_bytes",
)


def load_config(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> RunConfig:
    """Merge YAML files left to right, then `key=value` overrides, into a validated RunConfig.

    Raises:
        ConfigError: a file is missing or not YAML, a key is unknown, a value has the wrong type or is out of range.
    """
    given = [(str(path), _read_yaml(Path(path))) for path in paths]
    if overrides:
        given.append(("command line", _parse_overrides(overrides)))
    merged = OmegaConf.structured(RunConfig)
    for origin, extra in given:
        merged = _merge(merged, extra, origin)
    try:
        _refuse_impossible_numbers(OmegaConf.to_container(merged, resolve=True))
        config = OmegaConf.to_object(merged)
    except ConfigError as error:
        raise ConfigError(f"{_origin_of(str(error), given)}{error}") from error
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"{', '.join(map(str, paths)) or 'command line'}: {_first_line(error)}{_where(error)}"
        ) from error
    return config


def to_yaml(config: RunConfig) -> str:
    """The resolved configuration as YAML, every default written out."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def to_dict(config: Any) -> dict[str, Any]:
    """A section as plain nested dictionaries and lists."""
    return OmegaConf.to_container(OmegaConf.structured(config))


def with_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Stored settings, as plain dictionaries, with the default of every key they lack."""
    filled = _filled(settings, to_dict(RunConfig))
    if isinstance(filled["rewards"], Mapping):
        term = to_dict(RewardTermConfig)
        filled["rewards"] = {
            name: _filled(value, term) if isinstance(value, Mapping) else value
            for name, value in filled["rewards"].items()
        }
    return filled


def _filled(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    filled = {**defaults, **settings}
    for key, default in defaults.items():
        if isinstance(default, Mapping) and isinstance(filled[key], Mapping):
            filled[key] = _filled(filled[key], default)
    return filled


def known_keys(section: type = RunConfig, prefix: str = "") -> list[str]:
    """Every dotted key of the schema; `rewards.*` stands for a name the user chooses."""
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


def plain_yaml(text: str, origin: str) -> dict[str, Any]:
    """The keys and values of a YAML text that others may have written: what stands there, of bounded depth.

    Raises:
        ConfigError: it is something else, or builds more than it says (tags, aliases).
    """
    _refuse_bombs(text, origin, aliases=False)
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{origin}: not readable as YAML: {_first_line(error)}") from error
    require(isinstance(values, dict), f"{origin}: expected keys and values at the top level")
    return values


def _read_yaml(path: Path) -> DictConfig:
    text = _read_text(path)
    _refuse_bombs(text, str(path))
    _refuse_interpolations(text, str(path))
    try:
        loaded = OmegaConf.create(text)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError, TypeError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {_first_line(error)}") from error
    except AssertionError:  # of OmegaConf, for a bare number
        loaded = None
    require(isinstance(loaded, DictConfig), f"{path}: expected keys and values at the top level")
    return loaded


def _read_text(path: Path) -> str:
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


def _refuse_bombs(text: str, origin: str, *, aliases: bool = True) -> None:
    """Nesting is counted before anything is built: libyaml's own recursion ends in a crash of the process."""
    depth = documents = 0
    for event in _events(text, origin):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        documents += isinstance(event, yaml.DocumentStartEvent)
        where = f"{origin}, line {event.start_mark.line + 1}"
        require(depth <= MAX_DEPTH, f"{where}: nested more than {MAX_DEPTH} deep")
        require(documents <= 1, f"{where}: a second document begins (---); one is expected")
        require(aliases or not isinstance(event, yaml.AliasEvent), f"{where}: an alias (*) is not allowed here")


def _refuse_interpolations(text: str, origin: str) -> None:
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
        raise ConfigError(f"{origin}: not readable as YAML: {_first_line(error)}") from error


def _refuse_impossible_numbers(values: Mapping[str, Any]) -> None:
    """Of every section: no NaN, nothing infinite, nothing below 0, nothing that overflows where it is used."""
    for key, value in _numbers(values):
        found = "a huge integer" if isinstance(value, int) and abs(value) >= 2**63 else repr(value)
        require(isinstance(value, int) or math.isfinite(value), f"{key} must be a finite number, got {found}")
        require(-(2**63) <= value < 2**63, f"{key} must be below 2**63, got {found}")
        if key.startswith("rewards.") and ".args." in key:
            continue  # what they may be is the function's business
        require(value >= 0, f"{key} must be >= 0, got {found}")
        require(not key.endswith("_s") or value <= MOST_SECONDS, f"{key} must be <= {MOST_SECONDS:g} s, got {found}")
        require(key not in ABOVE_ZERO or value > 0, f"{key} must be > 0, got {found}")
        if key in AT_LEAST_ONE or key.startswith("policy.tiny."):
            require(value >= 1, f"{key} must be >= 1, got {found}")


def _numbers(node: Any, key: str = "") -> Iterator[tuple[str, int | float]]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _numbers(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for place, value in enumerate(node):
            yield from _numbers(value, f"{key}[{place}]")
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield key, node


def _parse_overrides(overrides: Sequence[str]) -> DictConfig:
    for item in overrides:
        key, _, value = item.partition("=")
        require("=" in item and bool(key), f"command line: {shown(item)} is not of the form key=value")
        origin = f"command line: {shown(key)}"
        require(len(item) <= MAX_BYTES, f"{origin}: longer than {MAX_BYTES:,} characters")
        require(key.count(".") + key.count("[") < MAX_DEPTH, f"{origin}: nested more than {MAX_DEPTH} deep")
        _refuse_bombs(value, origin)
        _refuse_interpolations(value, origin)
    try:
        return OmegaConf.from_dotlist(list(overrides))
    except (OmegaConfBaseException, TypeError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"command line: {_first_line(error)}") from error


def _merge(base: DictConfig, extra: DictConfig, origin: str) -> DictConfig:
    _refuse_unknown(extra, origin)
    try:
        return OmegaConf.merge(base, extra)
    except (OmegaConfBaseException, TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{origin}: {_first_line(error)}{_where(error)}") from error


def _refuse_unknown(extra: DictConfig, origin: str) -> None:
    known = known_keys()
    for name, term in _terms(extra):
        args = term.get("args")
        require(args is None or isinstance(args, DictConfig), f"{origin}: rewards.{name}.args must be keys and values")
    for key in _huge(extra):  # OmegaConf makes floats of them, or fails to without a word of where
        raise ConfigError(f"{origin}: {key[:200]} must be below 2**63, got a huge integer")
    for key in _dotted(extra):
        parts = key.split(".")
        if parts[0] == "rewards" and len(parts) > 1:
            parts[1] = "*"
        pattern = ".".join(parts)
        if pattern in known or pattern.startswith("rewards.*.args.") or pattern == "rewards.*":
            continue
        nearest = difflib.get_close_matches(pattern[:200], known, n=1, cutoff=0.0)[0]
        raise ConfigError(f"{origin}: unknown key {shown(key)}; did you mean {nearest!r}?")


def _dotted(node: DictConfig, prefix: str = "") -> list[str]:
    keys = []
    for name in node:
        keys.append(f"{prefix}{name}")
        child = node._get_node(name)
        if isinstance(child, DictConfig) and not child._is_none():
            keys += _dotted(child, f"{prefix}{name}.")
    return keys


def _terms(extra: DictConfig) -> list[tuple[str, DictConfig]]:
    rewards = extra.get("rewards")
    return [(n, t) for n, t in rewards.items() if isinstance(t, DictConfig)] if isinstance(rewards, DictConfig) else []


def _huge(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """Keys of integers beyond 64 bits."""
    for name in node:
        child = node._get_node(name)
        if isinstance(child, DictConfig):
            yield from () if child._is_none() else _huge(child, f"{prefix}{name}.")
        elif isinstance(value := child._value(), int) and not -(2**63) <= value < 2**63:
            yield f"{prefix}{name}"


def _origin_of(message: str, given: Sequence[tuple[str, DictConfig]]) -> str:
    """The last place that set the key a message begins with, as "FILE: "; empty if it is a default."""
    key = message.split(maxsplit=1)[0].rstrip(":").partition("[")[0]
    return next((f"{origin}: " for origin, extra in reversed(given) if key in _dotted(extra)), "")


def _first_line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        return f"{error.problem} (line {error.problem_mark.line + 1})"[:LONGEST]
    return (str(error).strip() or type(error).__name__).splitlines()[0][:LONGEST]


def _where(error: Exception) -> str:
    key = getattr(error, "full_key", None)
    return f" (key {key!r})" if key else ""
