"""Submitting a run to a Ray cluster: a minimal runtime environment, and an answer when it cannot work."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import yaml
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

DATA_VARIABLE = "DYNFRAME_REAL_DATA"
RELEASE_S = 30  # to release the workers, when a run that was stopped has saved
RUN_NAME = "job_name"  # in a job's metadata: the run's name
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"  # in its environment: how long Ray waits for it when it is stopped
RUNTIME_ENV = Path(__file__).with_name("runtime_env.yaml")
INTERRUPTED = 130  # exit code after Ctrl-C


class SubmitError(RuntimeError):
    """The job could not be submitted or followed; the message says what to do."""


def submit_training(
    arguments: Sequence[str],
    *,
    run: str,
    address: str,
    follow: bool,
    dry_run: bool,
    write: Callable[[str], None],
    stop_grace_s: float,
    program: str = "rl",
    command: str = "train",
    variables: Iterable[str] = (),
    working_dir: Path | None = None,
    needs: Iterable[str] = (),
) -> int:
    """Submit `python -m PROGRAM COMMAND ARGUMENTS`; returns the shell's exit code: 0 if it ran (or was only submitted).

    Args:
        arguments: YAML files, relative to the working directory, and key=value overrides.
        run: the run's name, which begins the job's id and stands in its metadata.
        working_dir: folder to ship; the current one if None.
        write: where the job's output goes.
        stop_grace_s: the run takes to save when it is stopped (trainer.stop_grace_s); Ray is told to wait for it.
        program: the command line as a module: rl, or dynframe_rl where a wheel has installed it.
        command: train, or finetune.
        variables: of the environment that the configuration names; they travel where they are set.
        needs: lines on what the nodes will need, written below the job in a dry run.
    """
    job = {
        "entrypoint": shlex.join(["python", "-m", program, command, *arguments]),
        "submission_id": submission_id(run),
        "metadata": {RUN_NAME: run},
        "runtime_env": runtime_env(working_dir or Path.cwd(), stop_grace_s, variables),
    }
    if dry_run:
        write(yaml.safe_dump(job, sort_keys=False) + "".join(f"# {line}\n" for line in needs))
        return 0
    try:
        with answering(address):
            client = JobSubmissionClient(address)
            name = client.submit_job(**job)
    except (ValueError, OSError) as error:
        raise SubmitError(f"the working directory could not be shipped: {first_line(error)}") from error
    write(f"submitted {name} to {address}")
    if warning := open_to_all(address):
        write(warning)
    return follow_job(client, name, address, write) if follow else 0


@contextmanager
def answering(address: str) -> Iterator[None]:
    """Questions to a job server.

    Raises:
        SubmitError: it does not answer, or refuses this process; says what to do.
    """
    try:
        yield
    except AuthenticationError as error:
        raise SubmitError(_unauthorised(address, error)) from error
    except SubmitError:
        raise
    except (ConnectionError, RuntimeError) as error:
        raise SubmitError(
            f"no Ray job server answered at {address}: {first_line(error)}. Start one (`ray start --head`), "
            "or name another with --address"
        ) from error


def open_to_all(address: str) -> str:
    """What to say of a job server beyond loopback that has answered this process without a token; empty: nothing."""
    host = urlsplit(address).hostname or ""
    is_local = host == "localhost" or host.startswith("127.") or host == "::1"
    if is_local or os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
        return ""
    return (
        f"note: {host} took this job without a token: everybody who reaches it may run code there; start its nodes "
        "with RAY_AUTH_MODE=token, or keep its ports behind a firewall"
    )


def submission_id(run: str) -> str:
    """The id of a run's next job: its name, the time in UTC and four digits of chance."""
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", run)
    return f"{safe}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:4]}"


def runtime_env(working_dir: Path, stop_grace_s: float, variables: Iterable[str] = ()) -> dict[str, Any]:
    """The runtime environment of cluster/runtime_env.yaml, shipping `working_dir` and the variables that are set."""
    declared = declared_environment()
    declared["env_vars"][STOP_WAIT] = str(round(stop_grace_s + RELEASE_S))
    for name in {DATA_VARIABLE, *variables} & os.environ.keys():  # where configurations look for their data, and others
        declared["env_vars"][name] = os.environ[name]
    return declared | {"working_dir": str(working_dir)}


def declared_environment() -> dict[str, Any]:
    """cluster/runtime_env.yaml."""
    return yaml.safe_load(RUNTIME_ENV.read_text(encoding="utf-8"))


def follow_job(client: JobSubmissionClient, job: str, address: str, write: Callable[[str], None]) -> int:
    """Print the job's output until it ends; Ctrl-C ends the printing only."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit "ignore"
    try:
        asyncio.run(_tail(client, job, write))
        status = client.get_job_status(job)
    except KeyboardInterrupt:
        write(f"\n{_how_to_go_on(job, address)}")
        return INTERRUPTED
    except (aiohttp.ClientError, ConnectionError, RuntimeError) as error:
        raise SubmitError(
            f"the job server at {address} does not answer any more: {first_line(error)}\n{_how_to_go_on(job, address)}"
        ) from error
    write(f"{job}: {status.value}")
    return 0 if status is JobStatus.SUCCEEDED else 1


async def _tail(client: JobSubmissionClient, job: str, write: Callable[[str], None]) -> None:
    async for lines in client.tail_job_logs(job):
        write(lines.rstrip("\n"))


def _how_to_go_on(job: str, address: str) -> str:
    """The commands that follow and stop a job that is running, with the authentication of this process."""
    mode = os.environ.get("RAY_AUTH_MODE")
    jobs = f"{f'RAY_AUTH_MODE={mode} ' if mode else ''}dynframe jobs {job}"
    return (
        f"{job} goes on. Its output: {jobs} --follow --address {address}\n"
        f"to stop it, saved: {jobs} --stop --address {address}"
    )


def _unauthorised(address: str, error: Exception) -> str:
    mode = os.environ.get("RAY_AUTH_MODE", "not set")
    reason = first_line(error).split(". ")[0]
    return (
        f"the Ray job server at {address} refuses this process (RAY_AUTH_MODE is {mode}): {reason}. Put the cluster's "
        "token (`ray get-auth-token` on its head) into ~/.ray/auth_token and set RAY_AUTH_MODE=token"
    )


def first_line(error: Exception) -> str:
    """Of its message; its type if that is empty."""
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
