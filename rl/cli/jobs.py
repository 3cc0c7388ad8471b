"""`dynframe jobs`: the jobs of a cluster, listed, told, followed, stopped and resumed."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from rl.cli.arguments import EXIT_FAILED, AsJson
from rl.cli.terminal import console, print_json, say
from rl.config.errors import ConfigError

if TYPE_CHECKING:
    from cluster.jobs import Job, Jobs

LAST_LINES, MOST_WORKERS = 20, 8  # of a job's output and of workers that failed, that are shown


def jobs(
    name: Annotated[str, typer.Argument(metavar="JOB|RUN", help="A job's id, or a run's name: its latest job.")] = "",
    address: Annotated[str, typer.Option(help="The cluster's job server.")] = "http://127.0.0.1:8265",
    follow: Annotated[bool, typer.Option("--follow", metavar="", help="Print its output until it ends.")] = False,
    stop: Annotated[bool, typer.Option("--stop", metavar="", help="Stop it, saved, and wait for that.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", metavar="", help="Submit it again: its run goes on from the newest checkpoint.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """The jobs of a cluster; with a name what came of one: status, node, log file, workers that failed with
    node and log, the last lines of its output.

    Example: `dynframe jobs quickstart --stop --address http://head:8265`
    """
    if (follow or stop or resume) and not name:
        raise ConfigError("command line: which job? `dynframe jobs` lists them; give an id, or a run's name")
    if stop and (follow or resume):
        raise ConfigError("command line: --stop goes without --follow and --resume")
    known = _server(address)
    if not name:
        return _list(known, as_json=as_json)
    job = known.find(name)
    if stop:
        job = known.stop(job, say)
    if resume:
        job = known.resume(job, say)
    if follow:
        raise typer.Exit(known.follow(job, say))
    _tell(known, job, as_json=as_json)
    if job.status == "FAILED":
        raise typer.Exit(EXIT_FAILED)


def _server(address: str) -> Jobs:
    from rl.cli.submission import use_own_token

    use_own_token()
    from cluster.jobs import Jobs

    return Jobs(address)


def _list(known: Jobs, *, as_json: bool) -> None:
    from rich.table import Table

    from cluster.jobs import rows

    found = known.all()
    if as_json:
        return print_json({"jobs": [asdict(job) for job in found]})
    if not found:
        return say("no job was submitted there")
    table = Table(box=None, pad_edge=False)
    for heading in ("run", "job", "status", "started", "took"):
        table.add_column(heading, no_wrap=True)
    for row in rows(found, time.time()):
        table.add_row(*row)
    console.print(table)


def _tell(known: Jobs, job: Job, *, as_json: bool) -> None:
    from cluster.jobs import failed_workers

    output = known.output(job)
    lines, failed = output[-LAST_LINES:], failed_workers(output)[-MOST_WORKERS:]
    if as_json:
        told = {"driver_log": job.driver_log, "last_lines": lines, "failed_workers": failed}
        return print_json(asdict(job) | told)
    say(f"{job.job_id}: {job.status}{f' ({job.message})' if job.message else ''}")
    say(f"command: {job.command}")
    if job.node:
        say(f"output, on node {job.node}: {job.driver_log} (another folder if RAY_TMPDIR says so)")
        say("logs of workers lie beside it, on their nodes")
    for worker in failed:
        say(f"failed: {worker}")
    for line in lines:
        say(f"  {line}")
