"""`dynframe prepare`: a downloaded data set made a checked folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from rl.cli.arguments import AsJson, end_with_gate
from rl.cli.terminal import console, print_json

if TYPE_CHECKING:
    from rl.published_data.preparation import Prepared, SplitCount

SHOWN = 10  # problems that are printed; --json has all
UNKNOWN = "–"


def prepare(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A data set, such as `nextgqa` or `llava_video_178k`.")],
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="What was downloaded: a folder, an archive, an annotation file.")
    ],
    out: Annotated[Path | None, typer.Option(help="The folder that is made; by default `data/NAME`.")] = None,
    annotation: Annotated[
        Path | None, typer.Option(help="The annotation file, where it is not called as the authors' is.")
    ] = None,
    check: Annotated[
        str, typer.Option(help="Of every video: a few frames (sample), all of them (whole), nothing (none).")
    ] = "sample",
    workers: Annotated[int, typer.Option(help="Decoding processes; 0: one per core.", min=0)] = 0,
    at_least: Annotated[
        float, typer.Option(help="The share of rows from which the set counts as usable.", min=0.0, max=1.0)
    ] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Make a checked folder of a published data set, its counts beside the authors' numbers.

    Known are the eleven benchmarks, DM-RL (`dm_rl`), DM-CoT (`dm_cot`) and LLaVA-Video-178K (`llava_video_178k`).
    Archives in SOURCE are unpacked once, nothing is downloaded, and SOURCE stays as it is. Given again, the command
    goes on where it was stopped. Prints what to do next; exits 3 if fewer rows than `--at-least` can be used.

    Example: `dynframe prepare nextgqa downloads/nextgqa --out data/nextgqa`
    """
    from rl.published_data.preparation import prepare as run_prepare

    home = out or Path("data") / name
    options = {"annotation": annotation, "check": check, "workers": workers, "at_least": at_least}
    made = run_prepare(name, source, home, console, **options)
    _print(made)
    if as_json:
        splits = [{**asdict(count), "share": count.share} for count in made.splits]
        problems = [list(problem) for problem in made.problems]
        print_json({"usable": made.usable, "splits": splits, "problems": problems, "next": list(made.commands)})
    end_with_gate(made.usable)


def _print(made: Prepared) -> None:
    table = Table(title=f"{made.published.title}: {made.home}", box=None, pad_edge=False)
    headings = ("split", "rows", "usable", "authors'", "videos", "found", "missing", "undecodable", "authors'")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "split" else "right")
    for count in made.splits:
        table.add_row(count.split, *_cells(count))
    console.print(table)
    for count in made.splits:
        for what, number, where in (
            ("rows", count.authors_rows, count.rows_source),
            ("videos", count.authors_videos, count.videos_source),
        ):
            told = where if number is None else f"{number:,}, {where}"
            console.print(f"{count.split}: the authors' {what}: {escape(told)}", highlight=False)
    for place, reason in made.problems[:SHOWN]:
        console.print(f"[yellow]{escape(place)}[/]: {escape(reason)}", highlight=False, soft_wrap=True)
    if len(made.problems) > SHOWN:
        console.print(f"and {len(made.problems) - SHOWN:,} more (--json has all)")
    verdict = "[green]usable[/]" if made.usable else "[red]not usable as it is[/]"
    console.print(f"{verdict}; {escape(str(made.home / 'manifest.json'))} has everything. Next:", highlight=False)
    for command in made.commands:
        console.print(f"    {escape(command)}", highlight=False, soft_wrap=True)


def _cells(count: SplitCount) -> list[str]:
    undecodable = f"{count.undecodable:,}" + (f" (+ {count.undecided:,} undecided)" if count.undecided else "")
    numbers = (count.rows, count.usable, count.authors_rows, count.media, count.found, count.missing)
    shown = [UNKNOWN if number is None else f"{number:,}" for number in numbers]
    return [*shown, undecodable, UNKNOWN if count.authors_videos is None else f"{count.authors_videos:,}"]
