"""`dynframe chaos` and `verify-resume`: proofs that a run survives what happens to it."""

from __future__ import annotations

from typing import Annotated

import typer

from rl.cli.arguments import AsJson, Inputs, end_with_gate, load_runnable
from rl.cli.terminal import console, print_json


def verify_resume(
    inputs: Inputs,
    at: Annotated[int, typer.Option("--at", help="Steps before the kill.", min=1)],
    steps: Annotated[int, typer.Option("--steps", help="Steps after it.", min=1)],
    moment: Annotated[
        str, typer.Option(help="boundary (the checkpoint is just published) | mid-step (what came after it is lost)")
    ] = "boundary",
    timeout: Annotated[float, typer.Option(help="Minutes that each run may take.", min=0.1)] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Prove that a run that is killed and resumed is the run that never stopped, bit for bit.

    Trains `at + steps` steps straight; then `at` steps, SIGKILL of every process, `resume=auto`, and the rest; with
    `rollout.deterministic=true`. Exits 3 and names the step and the first fingerprint that differs, if one does.
    A configuration of `dynframe finetune` is fine-tuned instead.

    Example: `dynframe verify-resume configs/quickstart.yaml --at 2 --steps 2`
    """
    config = load_runnable(inputs)
    from rl.fault_injection.verify_resume import verify_resume as run_verification

    proof = run_verification(config, console, at=at, steps=steps, moment=moment, run_timeout_s=60 * timeout)
    if as_json:
        print_json(proof.as_dict())
    end_with_gate(proof.passed)


def chaos(
    inputs: Inputs,
    minutes: Annotated[float, typer.Option(help="Minutes of faults, from the first step on.", min=0.1)] = 10.0,
    seed: Annotated[int, typer.Option(help="Which faults, where, and when.")] = 0,
    every: Annotated[float, typer.Option(help="Seconds between two faults, on average.", min=1.0)] = 20.0,
    timeout: Annotated[
        float, typer.Option(help="Minutes without a step, after which the run counts as hung.", min=1.0)
    ] = 30.0,
    only: Annotated[str, typer.Option(help="Fault types that may come, separated by commas; default: all.")] = "",
    nodes: Annotated[
        int,
        typer.Option(help="Machines of a cluster to run on, made of namespaces (Linux, root); 0: this one.", min=0),
    ] = 0,
    reference: Annotated[
        bool | None,
        typer.Option(
            "--reference/--no-reference",
            metavar="",
            help="Compare every step with a run without faults. Default: if `rollout.deterministic`.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Inject random faults into a real run, and check that nothing was lost or repeated.

    Workers, decoders and the whole run are killed or stopped, checkpoints are damaged; with `--nodes`, nodes are killed
    and replaced, their network slowed, object stores and the disk filled up, and Ray's head service is killed. The run
    is started again with the same command as often as it takes, and has to finish. Exits 3 if an invariant does not
    hold: every step and every task once, one policy version a step, parity, every fault detected and recovered,
    nothing left behind.

    Example: `dynframe chaos configs/quickstart.yaml --minutes 5 --seed 7`; on a cluster: `--nodes 2`
    """
    config = load_runnable(inputs)
    from rl.fault_injection.chaos import Experiment, run_chaos
    from rl.fault_injection.schedule import FAULT_TYPES, WITHOUT_NODES

    all_here = tuple(FAULT_TYPES) if nodes else WITHOUT_NODES
    names = tuple(name.strip() for name in only.split(",")) if only else all_here
    compared = config.rollout.deterministic if reference is None else reference
    experiment = Experiment(minutes, seed, every, names, compared, timeout_s=60 * timeout, nodes=nodes)
    result = run_chaos(config, experiment, console)
    if as_json:
        print_json(result.as_dict())
    end_with_gate(result.passed)
