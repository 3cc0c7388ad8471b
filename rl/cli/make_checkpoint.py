"""`dynframe make-checkpoint`: a random checkpoint at the real widths of a published one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rl.cli.arguments import EXIT_USAGE
from rl.cli.terminal import console, errors


def make_checkpoint(
    family: Annotated[str, typer.Argument(metavar="FAMILY", help="qwen2_5_vl | qwen3_vl")],
    size: Annotated[str, typer.Argument(metavar="SIZE", help="3b 7b 32b 72b | 2b 4b 8b 32b")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; it must not be there.")],
    layers: Annotated[int | None, typer.Option(help="Of the language model; all of them without it.", min=1)] = None,
    vision_layers: Annotated[int | None, typer.Option(help="Of the vision tower; likewise.", min=1)] = None,
    vocabulary: Annotated[
        str, typer.Option(help="qwen: the real one, from the package dashscope | tiny: the project's own.")
    ] = "qwen",
    shard_gb: Annotated[float, typer.Option(help="The largest file of weights, in GB.", min=0.001)] = 5.0,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal files.")] = 0,
) -> None:
    """Write a random checkpoint exactly as the hub ships one: real widths, names, files and vocabulary, fewer layers.

    For trying what loads a published checkpoint (conversion, `check`, `parity`, training, export) without its weights.
    What it writes is a stock folder: give it as `policy.path`. DeepStack and full attention keep their places where
    layers are left out as the printed line says.

    Example: `dynframe make-checkpoint qwen2_5_vl 3b --layers 2 --vision-layers 2 /tmp/qwen2_5_vl_3b`
    """
    from rl.policy.sizes import published_size
    from rl.policy.token_ids import PolicyFilesError
    from rl.run.console.stages import counted_stage

    if vocabulary not in ("qwen", "tiny"):
        raise typer.BadParameter(f"--vocabulary is qwen or tiny, not {vocabulary}")
    try:
        wanted = published_size(family, size).cut(layers, vision_layers)
        from rl.policy.stock.make import make_checkpoint as make
        from rl.policy.stock.make import weight_bytes

        megabytes = weight_bytes(wanted) // 10**6
        written = 0
        with counted_stage(console, f"writing {out} (MB)", megabytes) as stage:

            def on_written(count: int) -> None:
                nonlocal written
                written += count
                stage.update(written // 10**6)

            make(wanted, out, vocabulary=vocabulary, seed=seed, shard_gb=shard_gb, on_written=on_written)
    except PolicyFilesError as error:
        errors.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(EXIT_USAGE) from None
    vision, blocks = wanted.vision, wanted.vision.full_attention or wanted.vision.deepstack
    what = "full attention in" if vision.full_attention else "DeepStack after"
    console.print(
        f"{out}: {wanted.repository} at random, {wanted.text.layers} layers of {wanted.text.hidden}, {vision.depth} "
        f"vision layers of {vision.hidden}, {what} vision blocks {', '.join(map(str, blocks))}",
        highlight=False,
        soft_wrap=True,
    )
