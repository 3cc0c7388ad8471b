"""`dynframe report`: the page of a run, written or served. Part of the composition root."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from envs.video.reader import VideoReader
from rl.config.errors import ConfigError
from rl.report.build import MIB
from rl.report.http import Site, serve
from rl.report.live import LiveRun
from rl.report.overview.folders import is_run, require_folders
from rl.report.overview.site import RunsSite
from rl.report.run_files import open_run
from rl.run.page import REPORT, ClipFrames, write_report


def run_report(run: Path, out: Path | None, *, max_mib: float, console: Console) -> None:
    """Write the page of a run; by default, report.html in its folder.

    Raises:
        ConfigError: no such run, nothing reported yet, or the budget is too small.
    """
    run = open_run(run)
    out = run / REPORT if out is None else out
    if out.is_dir():
        raise ConfigError(f"--out {out}: is a folder; name a file, such as {out / REPORT}")
    written = write_report(run, out, int(max_mib * MIB), console)
    console.print(
        f"{written.path}: {written.num_bytes / MIB:.1f} MiB, {written.num_trajectories} trajectories of "
        f"{written.num_steps} steps and evaluations",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def serve_report(given: Sequence[Path], *, port: int, console: Console) -> None:
    """Follow a run, or all runs that are named or lie in folders that are, on loopback until interrupted.

    Raises:
        ConfigError: no such folder, or the port is taken.
    """
    require_folders(given)
    with VideoReader(workers=1) as reader:
        clips = ClipFrames(reader)
        if len(given) == 1 and is_run(given[0]):
            followed = str(open_run(given[0]))
            site: Site = LiveRun(Path(followed), clips)
        else:
            followed = f"the runs in {given[0]}" if len(given) == 1 else f"{len(given)} runs and folders"
            site = RunsSite(given, clips, given[0].absolute().name if len(given) == 1 else "runs")

        def ready(address: str) -> None:
            console.print(
                f"{address} follows {followed}; Ctrl-C ends it", markup=False, highlight=False, soft_wrap=True
            )

        try:
            serve(site, port, ready)
        except OSError as error:
            raise ConfigError(f"--port {port}: {error.strerror}; choose another, or 0 for any free one") from error
    console.print("stopped")
