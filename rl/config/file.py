"""Configuration files: YAML merged left to right, `key=value` on top, into a RunConfig and back.

Keys that do not exist are refused, all at once, each with its new name or the nearest one that exists; whatever a text
holds, it builds no more than it says. The one place that knows omegaconf.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rl.config.errors import ConfigError, first_line, require, shown
from rl.config.keys import dotted, misspelt
from rl.config.ranges import refuse_impossible_numbers
from rl.config.renamed import translated
from rl.config.rewards import RewardTermConfig
from rl.config.run import RunConfig
from rl.config.yaml_text import MAX_BYTES, MAX_DEPTH, plain_yaml, read_text, refuse_bombs, refuse_interpolations

COMMAND_LINE = "command line"
MOST_MISSPELT = 8  # keys named in one message


def load_config(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> RunConfig:
    """Merge YAML files left to right, then `key=value` overrides, into a validated RunConfig.

    Raises:
        ConfigError: a file is missing or not YAML, keys are unknown, a value has the wrong type or is out of range.
    """
    given = [(str(path), _read_yaml(Path(path))) for path in paths]
    if overrides:
        given.append((COMMAND_LINE, _parse_overrides(overrides)))
    plain = [(origin, OmegaConf.to_container(extra)) for origin, extra in given]
    _refuse_unknown(plain)
    merged = OmegaConf.structured(RunConfig)
    for (origin, extra), (_, settings) in zip(given, plain, strict=True):
        _refuse_unmergeable(settings, origin)
        merged = _merge(merged, extra, origin)
    try:
        refuse_impossible_numbers(OmegaConf.to_container(merged, resolve=True))
        return OmegaConf.to_object(merged)
    except ConfigError as error:
        raise ConfigError(f"{_origin_of(str(error), plain)}{error}") from error
    except OmegaConfBaseException as error:
        origins = ", ".join(map(str, paths)) or COMMAND_LINE
        raise ConfigError(f"{origins}: {first_line(error)}{_where(error)}") from error


def stored_settings(text: str, origin: str) -> dict[str, Any]:
    """What a run or a checkpoint has stored as its config.yaml, old keys under the names of today.

    Raises:
        ConfigError: it is not a configuration, or builds more than it says.
    """
    return translated(plain_yaml(text, origin))


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


def _read_yaml(path: Path) -> DictConfig:
    text = read_text(path)
    refuse_bombs(text, str(path))
    refuse_interpolations(text, str(path))
    try:
        loaded = OmegaConf.create(text)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError, TypeError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {first_line(error)}") from error
    except AssertionError:  # of OmegaConf, for a bare number
        loaded = None
    require(isinstance(loaded, DictConfig), f"{path}: expected keys and values at the top level")
    return loaded


def _parse_overrides(overrides: Sequence[str]) -> DictConfig:
    for item in overrides:
        key, _, value = item.partition("=")
        require("=" in item and bool(key), f"{COMMAND_LINE}: {shown(item)} is not of the form key=value")
        origin = f"{COMMAND_LINE}: {shown(key)}"
        require(len(item) <= MAX_BYTES, f"{origin}: longer than {MAX_BYTES:,} characters")
        require(key.count(".") + key.count("[") < MAX_DEPTH, f"{origin}: nested more than {MAX_DEPTH} deep")
        refuse_bombs(value, origin)
        refuse_interpolations(value, origin)
    try:
        return OmegaConf.from_dotlist(list(overrides))
    except (OmegaConfBaseException, TypeError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{COMMAND_LINE}: {first_line(error)}") from error


def _merge(base: DictConfig, extra: DictConfig, origin: str) -> DictConfig:
    try:
        return OmegaConf.merge(base, extra)
    except (OmegaConfBaseException, TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{origin}: {first_line(error)}{_where(error)}") from error


def _refuse_unknown(given: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """All keys that do not exist, of all files and the command line, in one message."""
    found = [(origin, shown(key), advice) for origin, settings in given for key, advice in misspelt(settings)]
    if len(found) == 1:
        ((origin, key, advice),) = found
        raise ConfigError(f"{origin}: unknown key {key}; {advice}")
    if found:
        named = [f"{key} in {origin}: {advice}" for origin, key, advice in found[:MOST_MISSPELT]]
        more = f"; and {len(found) - MOST_MISSPELT} more" if len(found) > MOST_MISSPELT else ""
        raise ConfigError(f"{len(found)} unknown keys: {'; '.join(named)}{more}")


def _refuse_unmergeable(settings: Mapping[str, Any], origin: str) -> None:
    """What OmegaConf would change silently, or refuse without a word of where."""
    rewards = settings.get("rewards")
    for name, term in rewards.items() if isinstance(rewards, Mapping) else ():
        args = term.get("args") if isinstance(term, Mapping) else None
        require(args is None or isinstance(args, Mapping), f"{origin}: rewards.{name}.args must be keys and values")
    for key in _huge(settings):
        raise ConfigError(f"{origin}: {key[:200]} must be below 2**63, got a huge integer")


def _huge(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Keys of integers beyond 64 bits."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _huge(value, f"{prefix}{name}.")
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            yield f"{prefix}{name}"


def _origin_of(message: str, given: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """The last place that set the key a message begins with, as "FILE: "; empty if it is a default."""
    key = message.split(maxsplit=1)[0].rstrip(":").partition("[")[0]
    return next((f"{origin}: " for origin, settings in reversed(given) if key in dotted(settings)), "")


def _where(error: Exception) -> str:
    key = getattr(error, "full_key", None)
    return f" (key {key!r})" if key else ""
