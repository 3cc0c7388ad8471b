"""`dynframe train`, `cold-start`, `finetune` and `submit`: making a policy, here or on a cluster."""

from __future__ import annotations

from typing import Annotated

import typer

from rl.cli.arguments import Inputs, load, load_runnable
from rl.cli.terminal import console, say
from rl.config.installation import PROGRAM
from rl.run.imports import uncollected


def train(inputs: Inputs) -> None:
    """Train a policy: cold start if configured, then reinforcement learning.

    Everything lands in `output_dir/name`: metrics.jsonl, trajectories/, checkpoints/, summary.json. Given again, the
    same command goes on from the newest valid checkpoint (`resume=auto|never|PATH`); Ctrl-C and SIGTERM save first.

    Example: `dynframe train configs/quickstart.yaml trainer.steps=200 name=longer`
    """
    config = load_runnable(inputs)
    with uncollected():
        from rl.run.train import run_training

    run_training(config, console)


def cold_start(inputs: Inputs) -> None:
    """Only the supervised stage on retrieval traces; prints the folder of the resulting policy.

    The result is cached by a fingerprint of everything it depends on; `dynframe train` finds it there.

    Example: `dynframe cold-start configs/quickstart.yaml cold_start.steps=200`
    """
    config = load_runnable(inputs)
    with uncollected():
        from rl.run.train import run_cold_start_only

    say(str(run_cold_start_only(config, console)))


def finetune(inputs: Inputs) -> None:
    """Supervised training on conversations about images and videos (`finetune.sources`).

    Of LLaVA-Video-178K, ShareGPT4Video and PixMo as they are published, and of retrieval traces. Everything lands in
    `output_dir/name` as with `dynframe train`, and goes on from the newest valid checkpoint when it is given again.

    Example: `dynframe finetune configs/flexivideo_qwen2_5_vl_3b.yaml`
    """
    config = load_runnable(inputs)
    with uncollected():
        from rl.run.finetune import run_finetuning

    run_finetuning(config, console)


def submit(
    inputs: Inputs,
    address: Annotated[str, typer.Option(help="The cluster's job server.")] = "http://127.0.0.1:8265",
    follow: Annotated[bool, typer.Option(metavar="", help="Print the job's output until it ends.")] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", metavar="", help="Print what would be submitted, and what nodes will need.")
    ] = False,
    shared_paths: Annotated[
        bool, typer.Option("--shared-paths", metavar="", help="Absolute paths of this machine are those of every node.")
    ] = False,
) -> None:
    """Submit `dynframe train` as a Ray job, with this folder as its working directory; or `dynframe finetune`.

    The configuration is checked here first, and that every file it names will be there: in this folder and not left out
    of what travels, or by an absolute path that nodes can read. Ctrl-C ends the printing only and says how to follow or
    stop the job.

    Example: `dynframe submit configs/sd_grpo_qwen2_5_vl_3b.yaml --address http://head:8265`
    """
    from rl.cli.submission import relative_to_here, require_travelling, use_own_token, variables_of

    config = load(inputs, starts_ray=False)  # refuse here what the cluster would refuse minutes later
    arguments = relative_to_here(inputs)
    require_travelling(config, arguments, address, paths_are_shared=shared_paths)
    use_own_token()
    from cluster.submit import submit_training
    from rl.run.preflight.nodes import lines_for_dry_run

    code = submit_training(
        arguments,
        run=config.name,
        address=address,
        follow=follow,
        dry_run=dry_run,
        write=say,
        stop_grace_s=config.trainer.stop_grace_s,
        program=PROGRAM,
        command="finetune" if config.only_finetunes else "train",
        variables=variables_of(arguments),
        needs=lines_for_dry_run(config) if dry_run else (),
    )
    raise typer.Exit(code)
