"""`dynframe check`, `doctor`, `validate-data` and `config`: what can be known before anything starts."""

from __future__ import annotations

from typing import Annotated

import typer

from rl.cli.arguments import AsJson, Inputs, conclude, end_with_gate, load
from rl.cli.terminal import console, print_json


def check(inputs: Inputs, as_json: AsJson = False) -> None:
    """Check configuration, policy, rewards, data, token budget, memory and disk before anything starts.

    Takes seconds, starts no worker, and reports everything at once: also what every GPU and the main memory will hold,
    by name, and which keys help most where that is too much. Exits 3 if something failed.

    Example: `dynframe check configs/quickstart.yaml rollout.group_size=16`
    """
    config = load(inputs)
    from rl.run.preflight.check import run_checks
    from rl.run.preflight.memory import plan_memory, print_plan

    findings = run_checks(config, console)
    plan = plan_memory(config)
    print_plan(plan, console)
    conclude(findings, as_json=as_json, more={"memory_plan": plan.as_dict() if plan else None})


def doctor(
    again: Annotated[
        bool, typer.Option("--again", metavar="", help="Try also what has worked with the same packages before.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Report versions, processors, memory, disk, GPUs, and whether the heavy libraries import.

    Takes seconds and needs no configuration; imports that have worked are tried again only where something has changed
    since. Exits 3 if something failed, and says what to do about it.
    """
    from rl.cli.doctor import examine

    conclude(examine(again=again), as_json=as_json)


def validate_data(
    inputs: Inputs,
    workers: Annotated[int, typer.Option(help="Decoding processes; 0: one per core.", min=0)] = 0,
    sample: Annotated[
        bool, typer.Option("--sample", metavar="", help="Open every clip and decode a few frames, not all of them.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Decode every clip of the configured data once and give every row a status: ok, repaired, quarantined, undecided.

    The status of a clip goes to `data.quarantine`, one line as soon as it is known: training leaves quarantined clips
    out, and a killed validation goes on where it was. Undecided are clips that met a limit of time or memory, or a disk
    that could not be read: they stay in, and the next validation tries them again, like clips whose file has changed.
    Exits 3 if a row cannot be used or is undecided.

    Example: `dynframe validate-data configs/real_clips.yaml --workers 8`
    """
    config = load(inputs)
    from rl.cli.validation import print_report
    from rl.cli.validation import validate_data as run_validation

    report = run_validation(config, console, workers=workers, sample=sample)
    print_report(report, console)
    if as_json:
        print_json(report.as_dict())
    end_with_gate(report.passed)


def config(
    section: Annotated[
        str,
        typer.Argument(
            metavar="SECTION", help="A section, such as `rollout` or `rollout.engine`; all of them without it."
        ),
    ] = "",
    markdown: Annotated[bool, typer.Option("--markdown", metavar="", help="As Markdown tables.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the configuration keys: type, default, unit, and what each is for.

    Set any of them in a YAML file, or as `key=value` after the files of a command.

    Example: `dynframe config rollout`
    """
    from rl.cli.key_reference import print_keys

    print_keys(section, console, markdown=markdown, as_json=as_json)
