"""A live page is served to this machine alone: the page and its data, nothing else of the disk, and what is new."""

import gzip
import http.client
import json
import threading

import numpy as np
import pytest

from rl.report.http import PageServer
from rl.report.live import LiveRun
from rl.tracking.faults import write_faults
from rl.tracking.lanes import LANES, write_lanes
from rl.trajectory import Fault, WorkSpan
from tests.rl.report.recorded_run import append_step, write_run


class GreyClips:
    def duration_s(self, video):
        return 8.0

    def frames(self, video, times_ms, longest_side):
        return [np.full((56, 56, 3), 90, np.uint8) for _ in times_ms]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    home = tmp_path_factory.mktemp("live")
    run = write_run(home / "run", home / "clips", steps=2)
    with PageServer(LiveRun(run, GreyClips()), port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield run, server.server_address[1]
        server.shutdown()
        thread.join()


def get(port, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        is_packed = answer.getheader("Content-Encoding") == "gzip"
        return answer.status, dict(answer.getheaders()), gzip.decompress(body) if is_packed else body
    finally:
        connection.close()


def test_who_worked_when_is_there_as_soon_as_it_is_written(served):
    run, port = served
    before = get(port, "/data/run")
    assert [line["step"] for line in json.loads(before[2])["lanes"]["steps"]] == [1, 2]
    write_lanes(run / LANES, 9, [WorkSpan("rollout/0", "rollout", 10.0, 11.0)], 10.0, 12.0)
    after = get(port, "/data/run")
    assert before[1]["ETag"] != after[1]["ETag"]
    newest = json.loads(after[2])["lanes"]["steps"][-1]
    assert newest == {"step": 9, "start_s": 10.0, "seconds": 2.0, "lanes": [["rollout/0", [["rollout", 0.0, 1.0]]]]}


def test_the_page_and_its_data_are_served_under_a_strict_policy(served):
    _, port = served
    status, headers, page = get(port, "/")
    assert status == 200 and b'data-live="1"' in page
    assert "connect-src 'self'" in headers["Content-Security-Policy"] and headers["X-Content-Type-Options"] == "nosniff"
    index = json.loads(get(port, "/data/run")[2])
    assert [step["id"] for step in index["report_steps"]] == ["1", "2", "h2"]
    assert len(json.loads(get(port, "/data/step/h2")[2])) == 1
    clip = json.loads(get(port, "/data/clip/0")[2])
    assert clip["problem"] == "" and clip["images"]


def test_nothing_new_is_not_sent_again_and_a_new_step_is(served):
    run, port = served
    _, headers, _ = get(port, "/data/run")
    tag = headers["ETag"]
    assert get(port, "/data/run", **{"If-None-Match": tag})[0] == 304
    append_step(run, 3, {"reward/sampling": 0.875})
    status, headers, body = get(port, "/data/run", **{"If-None-Match": tag})
    assert status == 200 and headers["ETag"] != tag
    reward = next(metric for metric in json.loads(body)["metrics"] if metric["name"] == "reward/sampling")
    assert reward["values"][-1] == 0.875


def test_a_fault_is_served_once_it_is_on_record(served):
    run, port = served
    _, headers, body = get(port, "/data/run")
    assert json.loads(body)["faults"]["count"] == 0
    write_faults(run, 2, [Fault("worker_died", "rollout/0", "signal 9", "replaced", 1e9, 2.5)])
    status, _, body = get(port, "/data/run", **{"If-None-Match": headers["ETag"]})
    assert status == 200 and json.loads(body)["faults"]["steps"] == [[2, 1]]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1.evil:{port}", ""])
def test_a_request_for_another_host_is_refused(served, host):
    _, port = served
    for path in ("/", "/data/run"):
        status, _, body = get(port, path, Host=host.format(port=port))
        assert status == 421 and b"recorded" not in body


@pytest.mark.parametrize(
    "path",
    [
        "/metrics.jsonl",
        "/config.yaml",
        "/../run/config.yaml",
        "/data/step/../../config.yaml",
        "/data/step/%2e%2e%2fconfig.yaml",
        "/data/step/99",
        "/data/clip/99",
        "/data/clip/h1",
        "/data/run/1",
        "//etc/passwd",
    ],
)
def test_no_file_is_served(served, path):
    assert get(served[1], path)[0] == 404


def test_only_reading_is_offered(served):
    assert get(served[1], "/", method="POST")[0] == 501
