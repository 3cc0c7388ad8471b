"""Submitting a run to a Ray cluster: a minimal runtime environment, and an answer when it cannot work."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from ray.job_submission import JobStatus, JobSubmissionClient

DATA_VARIABLE = "DYNFRAME_REAL_DATA"
RELEASE_S = 30  # to release the workers, when a run that was stopped has saved
RUNTIME_ENV = Path(__file__).with_name("runtime_env.yaml")


class SubmitError(RuntimeError):
    """The job could not be submitted; the message says what to do."""


def submit_training(
    arguments: Sequence[str],
    *,
    address: str,
    follow: bool,
    dry_run: bool,
    write: Callable[[str], None],
    stop_grace_s: float,
    working_dir: Path | None = None,
) -> int:
    """Submit `python -m rl train ARGUMENTS`; returns the exit code for the shell: 0 if it ran (or was only submitted).

    Args:
        arguments: YAML files, relative to the working directory, and key=value overrides.
        working_dir: folder to ship; the current one if None.
        write: where the job's output goes.
        stop_grace_s: the run takes to save when it is stopped (trainer.stop_grace_s); Ray is told to wait for it.
    """
    entrypoint = shlex.join(["python", "-m", "rl", "train", *arguments])
    environment = runtime_env(working_dir or Path.cwd(), stop_grace_s)
    if dry_run:
        write(yaml.safe_dump({"entrypoint": entrypoint, "runtime_env": environment}, sort_keys=False))
        return 0
    try:
        client = JobSubmissionClient(address)
        job = client.submit_job(entrypoint=entrypoint, runtime_env=environment)
    except (ConnectionError, RuntimeError) as error:
        raise SubmitError(
            f"no Ray job server answered at {address}: {str(error).splitlines()[0]}. Start one (`ray start --head`), "
            "name another with --address, or set RAY_AUTH_MODE to what the cluster uses"
        ) from error
    write(f"submitted {job} to {address}")
    if not follow:
        return 0
    asyncio.run(_tail(client, job, write))
    status = client.get_job_status(job)
    write(f"{job}: {status.value}")
    return 0 if status is JobStatus.SUCCEEDED else 1


def runtime_env(working_dir: Path, stop_grace_s: float) -> dict[str, Any]:
    """The runtime environment of cluster/runtime_env.yaml, shipping `working_dir`."""
    declared = yaml.safe_load(RUNTIME_ENV.read_text(encoding="utf-8"))
    declared["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] = str(round(stop_grace_s + RELEASE_S))
    if DATA_VARIABLE in os.environ:  # where configurations look for their data
        declared["env_vars"][DATA_VARIABLE] = os.environ[DATA_VARIABLE]
    return declared | {"working_dir": str(working_dir)}


async def _tail(client: JobSubmissionClient, job: str, write: Callable[[str], None]) -> None:
    async for lines in client.tail_job_logs(job):
        write(lines.rstrip("\n"))
