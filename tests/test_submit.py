"""`dynframe submit`: a job named after its run, and what is said when it cannot be submitted or followed."""

import os
import signal

import aiohttp
import pytest
import yaml
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus

from cluster import submit
from cluster.submit import SubmitError, submission_id, submit_training

ADDRESS = "http://head:8265"


class JobServer:
    """A job server with one job: it prints "step 1", then does `then`."""

    def __init__(self, then=lambda: None, refusal=None, status=JobStatus.SUCCEEDED):
        self._then, self._refusal, self._status = then, refusal, status
        self.submitted = {}

    def __call__(self, address):
        assert address == ADDRESS
        return self

    def submit_job(self, **job):
        if self._refusal:
            raise self._refusal
        self.submitted = job
        return job["submission_id"]

    async def tail_job_logs(self, job):
        yield "step 1\n"
        self._then()

    def get_job_status(self, job):
        return self._status


@pytest.fixture
def submit_to(monkeypatch):
    """(exit code, what was written) of a submission to a job server."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    before = signal.getsignal(signal.SIGINT)

    def run(server, follow=True, **options):
        monkeypatch.setattr(submit, "JobSubmissionClient", server)
        written = []
        code = submit_training(
            ["configs/quickstart.yaml", "name=video r1"],
            run="video r1",
            address=ADDRESS,
            follow=follow,
            dry_run=False,
            write=written.append,
            stop_grace_s=120.0,
            **options,
        )
        return code, "\n".join(written)

    yield run
    signal.signal(signal.SIGINT, before)


def test_a_job_carries_the_name_of_its_run_in_id_and_metadata(submit_to, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    server = JobServer()
    code, written = submit_to(server)
    job = server.submitted["submission_id"]
    assert code == 0 and job.startswith("video-r1-2") and server.submitted["metadata"] == {"job_name": "video r1"}
    assert written == f"submitted {job} to {ADDRESS}\nstep 1\n{job}: SUCCEEDED"


@pytest.mark.parametrize("command", ["train", "finetune"])
def test_a_job_runs_the_command_that_its_configuration_is_for(submit_to, command):
    server = JobServer()
    submit_to(server, command=command)
    assert server.submitted["entrypoint"] == f"python -m rl {command} configs/quickstart.yaml 'name=video r1'"


def test_the_same_run_may_be_submitted_again():
    assert submission_id("video") != submission_id("video")


def test_a_failed_job_is_a_failed_command(submit_to):
    assert submit_to(JobServer(status=JobStatus.FAILED))[0] == 1


@pytest.mark.parametrize(("mode", "jobs"), [(None, "dynframe jobs"), ("token", "RAY_AUTH_MODE=token dynframe jobs")])
def test_ctrl_c_says_that_the_job_goes_on_and_how_to_follow_or_stop_it(submit_to, monkeypatch, mode, jobs):
    server = JobServer(then=lambda: os.kill(os.getpid(), signal.SIGINT))
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    code, written = submit_to(server)
    job = server.submitted["submission_id"]
    assert code == 130
    assert f"{job} goes on. Its output: {jobs} {job} --follow --address {ADDRESS}\n" in written
    assert written.endswith(f"to stop it, saved: {jobs} {job} --stop --address {ADDRESS}")


def test_ctrl_c_works_in_a_process_that_was_started_with_it_ignored(submit_to):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as by nohup and many CI runners
    code, written = submit_to(JobServer(then=lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert code == 130 and "goes on" in written


def test_a_job_server_that_is_lost_leaves_a_job_that_goes_on(submit_to):
    def lose():
        raise aiohttp.ClientConnectionError("Connection lost")

    with pytest.raises(SubmitError, match=r"does not answer any more: Connection lost\n.* goes on\. Its output"):
        submit_to(JobServer(then=lose))


@pytest.mark.parametrize(
    "refusal",
    [
        AuthenticationError("Token authentication is enabled but no token was found.\nSee the docs."),
        AuthenticationError("Authentication required: Unauthorized: Missing authentication token\n\nToken"),
        AuthenticationError("Authentication failed: Forbidden: Invalid authentication token\n\nToken"),
    ],
)
def test_a_wrong_token_or_mode_is_one_line_with_the_remedy(submit_to, refusal):
    with pytest.raises(SubmitError) as raised:
        submit_to(JobServer(refusal=refusal))
    message = str(raised.value)
    assert "\n" not in message
    assert "refuses this process (RAY_AUTH_MODE is not set)" in message and "set RAY_AUTH_MODE=token" in message


def test_a_job_server_that_takes_jobs_from_everybody_is_told(submit_to):
    told = "note: head took this job without a token: everybody who reaches it may run code there"
    assert told in submit_to(JobServer())[1]


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "http://localhost:8265", "http://[::1]:8265"])
def test_of_a_job_server_on_loopback_nothing_is_said(address, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    assert submit.open_to_all(address) == "" != submit.open_to_all(ADDRESS)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert submit.open_to_all(ADDRESS) == ""


def test_a_dry_run_shows_the_job_as_it_would_be_submitted():
    written = []
    code = submit_training(
        ["a.yaml"],
        run="r",
        address=ADDRESS,
        follow=True,
        dry_run=True,
        write=written.append,
        stop_grace_s=120.0,
        needs=["what nodes will need:", "  memory"],
    )
    assert written[0].endswith("# what nodes will need:\n#   memory\n")
    job = yaml.safe_load(written[0])
    assert code == 0 and job["entrypoint"] == "python -m rl train a.yaml"
    assert job["submission_id"].startswith("r-") and job["metadata"] == {"job_name": "r"}
