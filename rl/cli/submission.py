"""What `dynframe submit` looks at before a job is made: whether the job will have every file that the run names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rl.config.errors import ConfigError
from rl.config.files import files_read
from rl.config.inputs import split_inputs
from rl.config.installation import FROM_WHEEL, found_file, is_shipped
from rl.config.run import RunConfig
from rl.config.yaml_text import read_text, variables_in


def relative_to_here(inputs: Sequence[str]) -> list[str]:
    """The same arguments, with files below the working directory named relative to it: a job works in a copy."""
    paths, _ = split_inputs(inputs)
    here = Path.cwd()
    return [
        str(Path(item).relative_to(here)) if item in paths and Path(item).is_relative_to(here) else item
        for item in inputs
    ]


def variables_of(inputs: Sequence[str]) -> set[str]:
    """The variables of the environment that files and overrides name."""
    paths, overrides = split_inputs(inputs)
    return set().union(*(variables_in(text) for text in (*map(read_text, map(found_file, paths)), *overrides)))


def use_own_token() -> None:
    """Of this user's, if there is one: `ray start` decides alike, Ray's job client would not ask.

    Raises:
        ConfigError: RAY_AUTH_MODE says something that is no mode.
    """
    if (Path.home() / ".ray" / "auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    from actors.cluster.connection import require_auth_mode

    require_auth_mode()


def require_travelling(config: RunConfig, inputs: Sequence[str], address: str, *, paths_are_shared: bool) -> None:
    """
    Raises:
        ConfigError: a file that the run names will not be where the job runs, or there is too much to ship; names all
            of them, each with what to do.
    """
    from cluster.submit import declared_environment
    from cluster.travel import WorkingDirectory, is_this_machine, missing_on_cluster, too_large

    paths, _ = split_inputs(inputs)
    named = {f"configuration {place}": path for place, path in enumerate(paths, start=1)} | files_read(config)
    named = {key: path for key, path in named.items() if not (FROM_WHEEL and is_shipped(path))}  # each node has them
    working = WorkingDirectory(Path.cwd(), declared_environment()["excludes"])
    missing = missing_on_cluster(
        named, working, cluster_is_here=is_this_machine(address), paths_are_shared=paths_are_shared
    )
    reasons = dict.fromkeys(missing.values())
    problems = [f"{', '.join(k for k, why in missing.items() if why == reason)}: {reason}" for reason in reasons]
    if problems or (large := too_large(working)):
        raise ConfigError(f"not submitted: {'; '.join(problems) or large}")
