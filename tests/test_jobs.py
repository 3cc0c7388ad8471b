"""`dynframe jobs`: which jobs a cluster has, what came of each, and how they are stopped and resumed."""

import json

import pytest
from ray.job_submission import JobStatus
from typer.testing import CliRunner

from cluster import jobs as of_cluster
from cluster.jobs import Jobs, rows
from cluster.submit import SubmitError
from rl.cli.main import app
from rl.trajectory import WorkerFailure

ADDRESS = "http://head:8265"


class Told:
    """As Ray's JobDetails."""

    def __init__(self, job_id, status, start_s=None, end_s=None, run="", message="", env=None):
        self.submission_id, self.status, self.message = job_id, JobStatus(status), message
        self.start_time, self.end_time = start_s and 1000 * start_s, end_s and 1000 * end_s
        self.entrypoint, self.metadata = f"python -m rl train {run}.yaml", {"job_name": run or job_id}
        self.runtime_env = {"working_dir": "gcs://_ray_pkg_1.zip", "env_vars": env or {}}
        self.driver_agent_http_address = "http://10.0.0.7:52365" if start_s else None


class JobServer:
    """A job server that knows these jobs; a job that is stopped ends at the third look."""

    def __init__(self, *told, logs="", refusal=None):
        self.told, self.logs, self.refusal = {one.submission_id: one for one in told}, logs, refusal
        self.stopping, self.submitted = None, None

    def __call__(self, address):
        assert address == ADDRESS
        return self

    def list_jobs(self):
        if self.refusal:
            raise self.refusal
        return [*self.told.values()]

    def get_job_info(self, job):
        if self.stopping is not None:
            self.stopping -= 1
            if self.stopping == 0:
                self.told[job].status = JobStatus.STOPPED
        return self.told[job]

    def get_job_logs(self, job):
        if isinstance(self.logs, Exception):
            raise self.logs
        return self.logs

    def stop_job(self, job):
        self.stopping = 3

    def submit_job(self, **job):
        self.submitted = job
        again = Told(job["submission_id"], "PENDING", run=job["metadata"]["job_name"])
        self.told[again.submission_id] = again
        return again.submission_id


RUNNING = ("video-2-bb", "RUNNING", 2000, None, "video")
FAILED = ("video-1-aa", "FAILED", 1000, 1075, "video", "driver exited with 1")


@pytest.fixture
def served(monkeypatch):
    monkeypatch.setattr(of_cluster, "POLL_S", 0.0)

    def serve(*told, **options):
        server = JobServer(*(Told(*one) for one in told), **options)
        monkeypatch.setattr(of_cluster, "JobSubmissionClient", server)
        return server

    return serve


def test_the_latest_job_stands_first_and_strangers_jobs_are_there_too(served):
    served(FAILED, RUNNING, ("raysubmit_x", "SUCCEEDED", 1500, 5100))
    found = Jobs(ADDRESS).all()
    assert [job.job_id for job in found] == ["video-2-bb", "raysubmit_x", "video-1-aa"]
    assert [(job.run, job.is_over) for job in found] == [("video", False), ("", True), ("video", True)]
    assert [row[-1] for row in rows(found, now_s=2061.0)] == ["0:01:01", "1:00:00", "0:01:15"]


def test_a_run_stands_for_its_latest_job(served):
    served(FAILED, RUNNING)
    jobs = Jobs(ADDRESS)
    assert jobs.find("video").job_id == "video-2-bb" and jobs.find("video-1-aa").status == "FAILED"


@pytest.mark.parametrize(
    ("told", "said"),
    [((FAILED, RUNNING), "no job or run 'vidoe' at .*; did you mean video"), ((), "there is none")],
)
def test_a_job_that_is_not_there_is_answered_with_those_that_are(served, told, said):
    served(*told)
    with pytest.raises(SubmitError, match=said):
        Jobs(ADDRESS).find("vidoe")


def test_a_job_is_stopped_once_it_has_saved(served):
    served((*RUNNING, "", {"RAY_JOB_STOP_WAIT_TIME_S": "150"}))
    jobs, written = Jobs(ADDRESS), []
    ended = jobs.stop(jobs.find("video"), written.append)
    assert ended.status == "STOPPED" and "it saves first, within 150 s" in written[0]
    assert jobs.stop(ended, written.append) is ended and "is over: STOPPED" in written[1]


def test_a_job_that_does_not_end_is_told_with_its_node_and_log(served, monkeypatch):
    server = served((*RUNNING, "", {"RAY_JOB_STOP_WAIT_TIME_S": "0"}))
    monkeypatch.setattr(server, "stop_job", lambda job: None)
    monkeypatch.setattr(of_cluster, "RELEASE_S", 0.0)
    jobs = Jobs(ADDRESS)
    with pytest.raises(SubmitError, match=r"video-2-bb has not ended, on node 10\.0\.0\.7; its output: .*-bb\.log"):
        jobs.stop(jobs.find("video"), lambda line: None)


def test_a_job_is_submitted_again_as_it_was(served):
    server = served(FAILED)
    jobs, written = Jobs(ADDRESS), []
    again = jobs.resume(jobs.find("video"), written.append)
    assert again.run == "video" and again.job_id.startswith("video-") and again.job_id != "video-1-aa"
    assert server.submitted["entrypoint"] == "python -m rl train video.yaml"
    assert server.submitted["runtime_env"]["working_dir"] == "gcs://_ray_pkg_1.zip"
    assert written == [f"submitted {again.job_id}, as video-1-aa"]


def test_a_running_job_is_not_submitted_twice_and_one_whose_folder_is_gone_says_what_to_do(served, monkeypatch):
    server = served(RUNNING, ("old-1-cc", "STOPPED", 1, 2, "old"))
    jobs = Jobs(ADDRESS)
    with pytest.raises(SubmitError, match="video-2-bb is running; stop it first"):
        jobs.resume(jobs.find("video"), lambda line: None)

    def gone(**_):
        raise RuntimeError("Package gcs://_ray_pkg_1.zip not found\nTraceback")

    monkeypatch.setattr(server, "submit_job", gone)
    with pytest.raises(SubmitError, match=r"again as it was \(Package .* not found\): submit it from its folder"):
        jobs.resume(jobs.find("old"), lambda line: None)


def dynframe(*arguments):
    return CliRunner().invoke(app, ["jobs", *arguments, "--address", ADDRESS])


@pytest.mark.cli
def test_what_came_of_a_job_is_told_with_its_node_its_log_and_its_last_lines(served):
    served(FAILED, logs="\n".join(f"line {n}" for n in range(100)))
    answer = dynframe("video")
    assert answer.exit_code == 1  # as the job
    assert "video-1-aa: FAILED (driver exited with 1)" in answer.stdout and "on node 10.0.0.7" in answer.stdout
    assert "job-driver-video-1-aa.log" in answer.stdout
    assert "line 99" in answer.stdout and "line 80" in answer.stdout and "line 79" not in answer.stdout
    told = json.loads(dynframe("video", "--json").stdout.splitlines()[-1])
    assert told["status"] == "FAILED" and len(told["last_lines"]) == 20 and told["failed_workers"] == []


def test_workers_that_failed_are_named_with_their_node_and_log_however_long_ago_that_was(served):
    failures = [
        WorkerFailure(f"video/rollout/{n}", f"10.0.0.{n}", 40 + n, f"/tmp/ray/session_1/logs/worker-{n}.err", lines)
        for n, lines in ((0, ("Traceback", "KeyError: 'x'")), (1, ()))
    ]
    told = [f"12:00:00 error: {failures[0]}", f"12:00:01 warning: it died\n{failures[1]}", f"error: {failures[0]}"]
    served(FAILED, logs="\n".join(told + [f"line {n}" for n in range(100)]))
    answer = dynframe("video")
    (first, second) = [line for line in answer.stdout.splitlines() if line.startswith("failed: ")]
    assert (
        first == "failed: video/rollout/1, process 41 on node 10.0.0.1; its log: /tmp/ray/session_1/logs/worker-1.err"
    )
    assert second.endswith("worker-0.err") and "which ends with" not in second


@pytest.mark.cli
def test_jobs_are_a_table_or_json(served):
    served(FAILED, RUNNING, logs=RuntimeError("the agent of that node does not answer"))
    listed = dynframe().stdout
    assert listed.splitlines()[0].split() == ["run", "job", "status", "started", "took"] and "0:01:15" in listed
    assert [job["run"] for job in json.loads(dynframe("--json").stdout)["jobs"]] == ["video", "video"]
    assert dynframe("video").exit_code == 0  # it runs; of its output nothing can be had
    served()
    assert "no job was submitted there" in dynframe().stdout


@pytest.mark.cli
def test_what_cannot_be_asked_is_a_wrong_command_and_a_server_that_is_not_there_is_named(served):
    served(RUNNING)
    assert dynframe("--stop").exit_code != 0 and dynframe("video", "--stop", "--follow").exit_code != 0
    served(refusal=ConnectionError("Failed to connect"))
    with pytest.raises(SubmitError, match=r"no Ray job server answered at http://head:8265: Failed to connect"):
        Jobs(ADDRESS).all()
