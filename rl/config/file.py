"""Configuration files: YAML merged left to right, `key=value` on top, into a RunConfig and back.

Keys that do not exist are refused, all at once, each with its new name or the nearest one that exists; whatever a text
holds, it builds no more than it says. The one place that knows omegaconf.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from rl.config.errors import ConfigError, shown
from rl.config.finetune import ConversationSourceConfig
from rl.config.installation import found_file
from rl.config.keys import dotted, misspelt
from rl.config.overrides import COMMAND_LINE, parse_override
from rl.config.ranges import refuse_impossible_numbers
from rl.config.renamed import translated
from rl.config.rewards import RewardTermConfig
from rl.config.run import RunConfig
from rl.config.typed import TypedSettings, built, skeleton, typed_settings
from rl.config.yaml_text import plain_yaml, read_text, read_tree

MOST_MISSPELT = 8  # keys named in one message


def load_config(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> RunConfig:
    """Merge YAML files left to right, then `key=value` overrides, into a validated RunConfig.

    Args:
        paths: of files, or names of configurations that come with the project, as "quickstart".
    Raises:
        ConfigError: a file is missing or not YAML, keys are unknown, a value has the wrong type or is out of range.
    """
    files = [found_file(path) for path in paths]
    trees = [(str(path), read_tree(read_text(path), str(path))) for path in files]
    trees += [(COMMAND_LINE, parse_override(item)) for item in overrides]
    _refuse_unknown([(origin, skeleton(tree)) for origin, tree in trees])
    given = [_typed(tree, origin) for origin, tree in trees]
    values: dict[str, Any] = {}
    for settings in given:
        values = _filled(settings.values, values)
    try:
        refuse_impossible_numbers(values)
        return built(RunConfig, values)
    except ConfigError as error:
        raise ConfigError(_with_origin(str(error), given)) from error


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
    filled["rewards"] = _each_filled(filled["rewards"], to_dict(RewardTermConfig))
    if isinstance(finetune := filled["finetune"], Mapping):
        sources = _each_filled(finetune["sources"], to_dict(ConversationSourceConfig))
        filled["finetune"] = {**finetune, "sources": sources}
    return filled


def _each_filled(sections: Any, defaults: Mapping[str, Any]) -> Any:
    """Sections that the user has named."""
    if not isinstance(sections, Mapping):
        return sections
    return {name: _filled(value, defaults) if isinstance(value, Mapping) else value for name, value in sections.items()}


def _filled(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    filled = {**defaults, **settings}
    for key, default in defaults.items():
        if isinstance(default, Mapping) and isinstance(filled[key], Mapping):
            filled[key] = _filled(filled[key], default)
    return filled


def _typed(tree: yaml.MappingNode, origin: str) -> TypedSettings:
    in_file = origin != COMMAND_LINE
    return typed_settings(tree, origin, Path(origin).parent if in_file else Path.cwd(), in_file=in_file)


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


def _with_origin(message: str, given: Sequence[TypedSettings]) -> str:
    """A message after the last place that set the key it begins with, or else one it names, and with its line; alone
    where all it names are defaults."""
    words = [word.partition("=")[0].partition("[")[0].strip(".:,;()") for word in message.split()]
    for key in dict.fromkeys(words):
        for settings in reversed(given):
            if key in dotted(settings.values):
                return f"{settings.origin}: {message}{settings.line(key)}"
    return message
