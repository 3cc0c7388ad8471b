"""`dynframe encode-stats`: what FlexiVideo's encoder costs on clips."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rl.cli.arguments import AsJson
from rl.cli.terminal import console, print_json


def encode_stats(
    clips: Annotated[list[Path], typer.Argument(metavar="CLIPS", help="Videos, and folders to search for them.")],
    fps: Annotated[str, typer.Option(help="Frame rates, separated by commas.")] = "2,4,8,10",
    geometry: Annotated[
        str,
        typer.Option(
            help="Vision tower: tiny | tiny-qwen3-vl | qwen2.5-vl-3b | qwen3-vl-4b | qwen3-vl-8b (need no weights) | "
            "a checkpoint's FOLDER."
        ),
    ] = "tiny",
    measure: Annotated[
        bool | None,
        typer.Option(
            "--measure/--count",
            metavar="",
            help="Run a tower of that size (random weights: its cost is the same), or only count. "
            "Default: run it up to 50 M parameters.",
        ),
    ] = None,
    max_seconds: Annotated[float, typer.Option(help="Of each clip, from its start.")] = 30.0,
    max_frames: Annotated[int, typer.Option(help="Of each clip at each rate.", min=1)] = 64,
    max_pixels: Annotated[int, typer.Option(help="Of a frame, after resizing.", min=1)] = 151_200,
    repeats: Annotated[int, typer.Option(help="Of each measurement of seconds; the median counts.", min=1)] = 3,
    csv: Annotated[Path | None, typer.Option(help="Write every row to this file, clip by clip.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw tokens and scene lengths to this file (matplotlib).")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what FlexiVideo's encoder costs on your clips: fixed pairs and sixes, and dynamic scenes.

    Visual tokens, scene lengths, TFLOPs and Kpixel per TFLOP are counted; seconds (CPU) and peak memory are measured.
    What cannot be read as a video is reported and skipped.

    Example: `dynframe encode-stats my_clips/ --plot tokens.png`
    """
    from rl.encode_stats.figure import draw, require_drawable
    from rl.encode_stats.inputs import EncodeLimits, parse_rates, require_writable
    from rl.encode_stats.measure import encode_stats as run_encode_stats
    from rl.encode_stats.measure import ignore_rows
    from rl.encode_stats.rows import CsvRows
    from rl.encode_stats.rows import as_dict as report_as_dict
    from rl.encode_stats.tables import print_report

    rates, limits = parse_rates(fps), EncodeLimits(max_seconds, max_frames, max_pixels)
    for option, path in (("--csv", csv), ("--plot", plot)):
        require_writable(option, path)
    if plot is not None:
        require_drawable(plot)
    on_clip = ignore_rows if csv is None else CsvRows(csv).add
    report = run_encode_stats(
        clips, rates, geometry, limits, console, measure=measure, repeats=repeats, on_clip=on_clip
    )
    print_report(report, console)
    if plot is not None:
        draw(report, plot)
    if as_json:
        print_json(report_as_dict(report))
