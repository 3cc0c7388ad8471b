"""`dynframe parity` and `rollout`: looking at a policy without training it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from rl.cli.arguments import AsJson, Inputs, end_with_gate, load_runnable
from rl.cli.terminal import console, print_json


def parity(
    inputs: Inputs,
    as_json: AsJson = False,
    tasks: Annotated[
        int, typer.Option(help="How many tasks to roll out; each gives a group of trajectories to compare.", min=1)
    ] = 8,
    force_call: Annotated[
        bool | None,
        typer.Option(
            "--force-call/--no-force-call",
            metavar="",
            help="Put a call where the policy writes none, so that there is a second turn to compare. "
            "Default: for a policy that was not trained here.",
        ),
    ] = None,
) -> None:
    """Compare engine and learner log-probs on two-turn trajectories, per segment, with negative controls.

    Exits 3 if a difference exceeds `parity.gate_nat` in float32 (`gate_bf16_nat` and `gate_bf16_mean_nat` in bfloat16),
    or if a control (wrong durations, shifted pixels, permuted scenes) is not at least 100 (5) times larger: then the
    comparison could not have found a difference. Warns where the log-probs spread by less than a nat: a nearly uniform
    policy gives every token the same, whatever it is shown.

    Example: `dynframe parity configs/quickstart.yaml --tasks 4`

    A downloaded checkpoint: `dynframe parity CONFIG policy.path=FOLDER cold_start.enabled=false --tasks 1`
    """
    config = load_runnable(inputs)
    from rl.policy.vllm.plugin import engine_environment

    os.environ.update(engine_environment("cuda" if config.placement.rollout_gpus else "cpu"))  # before torch
    from rl.cli.inspection import parity_failures, run_parity

    report = run_parity(config, console, num_tasks=tasks, force_call=force_call)
    if as_json:
        print_json(report.as_dict())
    end_with_gate(not parity_failures(report, config))


def rollout(
    inputs: Inputs,
    tasks: Annotated[int, typer.Option(help="Number of tasks to roll out.", min=1)] = 4,
    split: Annotated[str, typer.Option(help="train | held_out")] = "held_out",
    greedy: Annotated[
        bool, typer.Option(metavar="", help="One greedy trajectory per task instead of a sampled group.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Write the records as JSON lines to this file.")] = None,
) -> None:
    """Roll out tasks with the policy and print what it did: text, windows asked, frames seen, rewards.

    Example: `dynframe rollout configs/quickstart.yaml --tasks 2 --greedy`
    """
    config = load_runnable(inputs)
    from rl.cli.inspection import run_rollout

    run_rollout(config, console, num_tasks=tasks, split=split, greedily=greedy, out=out)
