"""`dynframe monitor`: Prometheus beside runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rl.cli.terminal import console


def monitor(
    port: Annotated[int, typer.Option(help="On 127.0.0.1.", min=1, max=65535)] = 9090,
    folder: Annotated[Path, typer.Option(help="For its samples, configuration and log.")] = Path(".cache/prometheus"),
    every: Annotated[int, typer.Option(metavar="SECONDS", help="Between two samples.", min=1)] = 10,
    keep: Annotated[str, typer.Option(metavar="TIME", help="How long samples are kept, such as 30d.")] = "15d",
) -> None:
    """Bring up Prometheus beside the runs of this machine: their numbers as curves, with alerts; Ctrl-C ends it.

    It finds every Ray that runs here (on the head node, with all nodes of that cluster) and follows runs as they come
    and go. Needs the program `prometheus`. Panels for Grafana are in `cluster/grafana`.

    Example: `dynframe monitor --port 9091 --keep 30d`
    """
    from functools import partial

    from rl.monitoring.prometheus import monitor as run
    from rl.monitoring.targets import ray_folder
    from rl.run.console.stages import say

    run(folder.absolute(), ray_folder(), port=port, every_s=every, keep=keep, say=partial(say, console))
