"""`dynframe ask`: one question about one video."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from rl.cli.arguments import EXIT_FAILED, AsJson, Best
from rl.cli.terminal import console, print_json


def ask(
    policy: Annotated[
        str, typer.Argument(metavar="FOLDER|RUN", help="An exported or stock policy, a run or one of its checkpoints.")
    ],
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="A video file.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask about it.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings that differ, such as `video.coarse.fps=4`."),
    ] = None,
    best: Best = False,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token.", min=0.0)] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the sampling, above temperature 0.", min=0)] = 0,
    html: Annotated[
        Path | None, typer.Option(help="Also write the trajectory as a page, as in a run's report.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask a policy about a video: what it wrote, the windows it asked for, the frames it was shown, its answer.

    The video is decoded, cut and shown as in training: a run and an export say how. One engine in this process; no Ray.

    Example: `dynframe ask exported clip.mp4 "What colour flashes?" --html answer.html`
    """
    from rl.cli.asking import configured, device_of, require_video

    config = configured(policy, overrides or [], best=best, console=console)
    require_video(config, video)
    from rl.policy.vllm.plugin import engine_environment

    os.environ.update(engine_environment(device_of(config)))  # before torch
    from rl.cli.asking import answer, print_answer, write_page

    record = answer(config, video, question, console, temperature=temperature, seed=seed)
    print_answer(record, console)
    if html is not None:
        write_page(record, html, console)
    if as_json:
        print_json({key: value for key, value in record.items() if key not in ("group", "sibling", "rewards")})
    if record["stop"] == "video_error":
        raise typer.Exit(EXIT_FAILED)
