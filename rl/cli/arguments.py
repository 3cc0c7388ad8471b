"""What several commands take, and how they end: configurations, --best, --json, exit codes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rl.cli.terminal import console, print_json

if TYPE_CHECKING:  # the configuration and its reader are half of what `--help` would wait for
    from rl.config.run import RunConfig
    from rl.run.preflight.findings import Finding

EXIT_FAILED, EXIT_USAGE, EXIT_GATE = 1, 2, 3

Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="CONFIG|KEY=VALUE",
        help="YAML files, merged left to right, then overrides such as `trainer.steps=10`. "
        "`dynframe config` lists every key.",
        show_default=False,
    ),
]
Best = Annotated[
    bool, typer.Option("--best", metavar="", help="Of the run, the best checkpoint (`trainer.best_metric`).")
]
AsJson = Annotated[bool, typer.Option("--json", metavar="", help="Print one JSON object as the last line.")]


def load(inputs: Sequence[str], *, starts_ray: bool = True) -> RunConfig:
    """The configuration that a command's arguments name.

    Args:
        starts_ray: the command may start a Ray of its own, which will ask for a token, as Ray's do by default.
    Raises:
        ConfigError: it cannot be used.
    """
    from rl.config.file import load_config
    from rl.config.inputs import split_inputs
    from rl.config.run import JOB_HOME, anchored, works_in_a_copy

    if starts_ray and not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # decided here, since Ray reads it when it is imported
    config = load_config(*split_inputs(inputs))
    if not works_in_a_copy():
        return config
    home = Path.home() / JOB_HOME
    console.print(f"inside a Ray job: relative folders are taken from {home}, since Ray deletes the job's own copy")
    return anchored(config, home)


def load_runnable(inputs: Sequence[str]) -> RunConfig:
    """The same, with a policy that can be trained here: a wrong one is refused before torch is imported.

    Raises:
        ConfigError: it cannot be used, or neither `policy.path` nor `init_from` is a policy's folder.
    """
    config = load(inputs)
    from rl.run.origin import begun_from
    from rl.run.prepare.policy import require_given_policy

    config = begun_from(config)
    require_given_policy(config)
    return config


def conclude(findings: Sequence[Finding], *, as_json: bool, more: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Print findings; exit code 3 if one failed.

    Args:
        more: for --json, beside the findings.
    """
    from rl.run.preflight.findings import as_dict, passed, print_findings

    print_findings(findings, console)
    if as_json:
        print_json(as_dict(findings) | more)
    end_with_gate(passed(findings))


def end_with_gate(holds: bool) -> None:
    """Exit code 3 unless what was checked holds."""
    if not holds:
        raise typer.Exit(EXIT_GATE)
