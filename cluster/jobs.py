"""The jobs of a Ray cluster: which there are, what came of each, stopped, followed and submitted again."""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from cluster.submit import RELEASE_S, RUN_NAME, STOP_WAIT, SubmitError, answering, first_line, follow_job, submission_id

POLL_S = 0.5  # between two looks at a job that is being stopped
# the first line of a rl.trajectory.WorkerFailure
WORKER = re.compile(r"([\w.-]+/[\w./#-]+, process \w+ on node \S+; its log: .+?)(?:, which ends with)?$")


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the server tells it."""

    job_id: str
    run: str  # the run's name; empty: not submitted by dynframe
    status: str
    started_s: float | None  # time.time()
    ended_s: float | None
    command: str
    message: str  # what the server says of it
    node: str  # address of the node that its driver runs on; empty: it has not started
    saves_s: float  # what Ray waits when it is stopped

    @property
    def is_over(self) -> bool:
        """Whether nothing of it runs any more."""
        return JobStatus(self.status).is_terminal()

    @property
    def driver_log(self) -> str:
        """Where its whole output lies, on its node: in the folder of Ray's session, as that is by default."""
        return f"/tmp/ray/session_latest/logs/job-driver-{self.job_id}.log"


class Jobs:
    """The jobs of the cluster whose job server answers at an address."""

    def __init__(self, address: str) -> None:
        """
        Raises:
            SubmitError: no job server answers there, or it refuses this process.
        """
        self._address = address
        with answering(address):
            self._client = JobSubmissionClient(address)

    def all(self) -> list[Job]:
        """Every job that was submitted, the latest first."""
        with answering(self._address):
            found = [_job(one) for one in self._client.list_jobs() if one.submission_id]
        return sorted(found, key=lambda job: job.started_s or 0.0, reverse=True)

    def find(self, name: str) -> Job:
        """A job by its id, or the latest of a run.

        Raises:
            SubmitError: there is none.
        """
        jobs = self.all()
        for job in jobs:
            if name in (job.job_id, job.run):
                return job
        known = list(dict.fromkeys(called for job in jobs for called in (job.run, job.job_id) if called))
        near = difflib.get_close_matches(name, known, n=1)
        there = (
            f"did you mean {near[0]}?" if near else f"there are {', '.join(known[:8])}" if known else "there is none"
        )
        raise SubmitError(f"no job or run {name!r} at {self._address}; {there}")

    def output(self, job: Job) -> list[str]:
        """Its lines; empty before it has any."""
        try:
            return self._client.get_job_logs(job.job_id).splitlines()
        except RuntimeError:  # the node that has them is gone
            return []

    def stop(self, job: Job, write: Callable[[str], None]) -> Job:
        """Stop it, saved, and wait for that; one that is over is left alone.

        Raises:
            SubmitError: it does not end.
        """
        if job.is_over:
            write(f"{job.job_id} is over: {job.status}")
            return job
        write(f"stopping {job.job_id}: it saves first, within {job.saves_s:.0f} s …")
        deadline = time.monotonic() + job.saves_s + RELEASE_S
        with answering(self._address):
            self._client.stop_job(job.job_id)
            while not (now := _job(self._client.get_job_info(job.job_id))).is_over:
                if time.monotonic() > deadline:
                    raise SubmitError(f"{job.job_id} has not ended, on node {job.node}; its output: {job.driver_log}")
                time.sleep(POLL_S)
        return now

    def follow(self, job: Job, write: Callable[[str], None]) -> int:
        """Print its output until it ends; the shell's exit code."""
        return follow_job(self._client, job.job_id, self._address, write)

    def resume(self, job: Job, write: Callable[[str], None]) -> Job:
        """Submit it once more: its run goes on from the newest checkpoint.

        Raises:
            SubmitError: it is not over, or what it was shipped with is no longer there.
        """
        if not job.is_over:
            raise SubmitError(f"{job.job_id} is {job.status.lower()}; stop it first, or follow it")
        with answering(self._address):
            told = self._client.get_job_info(job.job_id)
        try:
            again = self._client.submit_job(
                entrypoint=told.entrypoint,
                submission_id=submission_id(job.run or "job"),
                metadata=told.metadata or {},
                runtime_env=told.runtime_env or {},
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise SubmitError(
                f"{job.job_id} cannot be submitted again as it was ({first_line(error)}): submit it from its folder, "
                "`dynframe submit …` with the same arguments goes on, too"
            ) from error
        write(f"submitted {again}, as {job.job_id}")
        return self.find(again)


def failed_workers(output: Sequence[str]) -> list[str]:
    """Of a run's output what names a worker that failed, its node and its log; each once, the last one last."""
    found = [match[1] for line in output if (match := WORKER.search(line))]
    return list(dict.fromkeys(reversed(found)))[::-1]


def rows(jobs: Sequence[Job], now_s: float) -> list[tuple[str, ...]]:
    """Run, job, status, start and duration of each, for a table."""
    return [(job.run, job.job_id, job.status, _clock(job.started_s), _spent(job, now_s)) for job in jobs]


def _clock(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else ""


def _spent(job: Job, now_s: float) -> str:
    if not job.started_s:
        return ""
    minutes, seconds = divmod(round((job.ended_s or now_s) - job.started_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def _job(told: JobDetails) -> Job:
    metadata, environment = told.metadata or {}, (told.runtime_env or {}).get("env_vars") or {}
    return Job(
        job_id=told.submission_id,
        run=metadata.get(RUN_NAME, "") if metadata.get(RUN_NAME) != told.submission_id else "",
        status=told.status.value,
        started_s=_seconds(told.start_time),
        ended_s=_seconds(told.end_time),
        command=told.entrypoint,
        message=told.message or "",
        node=urlsplit(told.driver_agent_http_address or "").hostname or "",
        saves_s=_number(environment.get(STOP_WAIT)),
    )


def _seconds(milliseconds: int | None) -> float | None:
    return milliseconds / 1000 if milliseconds else None


def _number(text: Any) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return 3.0  # Ray's own
