"""`dynframe monitor` with a real Prometheus: found, started on loopback, fed, stopped; and the alerts it raises."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest

from rl.config.errors import ConfigError
from rl.monitoring.prometheus import CLUSTER, find_prometheus
from rl.monitoring.targets import LIST
from tests.calibration import within
from tests.prometheus import REPOSITORY, Monitor, needs_prometheus

pytestmark = pytest.mark.cli


def test_where_there_is_no_prometheus_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="apt-get install prometheus"):
        find_prometheus()


@needs_prometheus
@pytest.mark.parametrize("arguments", [("check", "config", "prometheus.yml"), ("check", "rules", "alerts.yml")])
def test_what_is_shipped_is_valid(arguments):
    *command, name = arguments
    checked = subprocess.run(["promtool", *command, CLUSTER / name], capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@needs_prometheus
def test_every_alert_fires_for_a_bad_run_and_is_silent_for_a_good_one():
    tests = REPOSITORY / "tests/rl/monitoring/alerts_test.yml"
    told = subprocess.run(["promtool", "test", "rules", tests], capture_output=True, text=True, timeout=120)
    assert told.returncode == 0, told.stdout + told.stderr
    alerts = {line.split()[-1] for line in (CLUSTER / "alerts.yml").read_text().splitlines() if "- alert:" in line}
    text = tests.read_text()
    assert [alert for alert in alerts if f'alertname="{alert}"' not in text] == []


class Numbers(http.server.BaseHTTPRequestHandler):
    """A process that exports one number."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(b'ray_dynframe_step{run="served"} 7\n')

    def log_message(self, *_):
        """Says nothing."""


@pytest.fixture
def exporter():
    """Its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Numbers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()


@needs_prometheus
def test_it_listens_on_loopback_alone_finds_rays_that_come_later_and_ends_with_its_prometheus(tmp_path, exporter):
    monitor = Monitor(tmp_path / "prometheus", tmp_path)
    try:
        assert f"http://127.0.0.1:{monitor.port}" in monitor.said[0], monitor.said + monitor.process.stdout.readlines()
        processes = [monitor.process.pid, *(one.pid for one in psutil.Process(monitor.process.pid).children())]
        listening = [
            connection.laddr
            for pid in processes
            for connection in psutil.Process(pid).net_connections()
            if connection.status == psutil.CONN_LISTEN
        ]
        assert listening == [("127.0.0.1", monitor.port)]
        session = tmp_path / "ray" / "session_later"
        session.mkdir(parents=True)
        (session / LIST).write_text(json.dumps([{"targets": [exporter]}]))
        (found,) = monitor.wait_for('ray_dynframe_step{run="served"}')
        assert found["value"][1] == "7"
        assert len(monitor.get("rules")["groups"]) == 2
        assert monitor.stop() == 128 + signal.SIGTERM
        assert monitor.tree.wait_gone(within(60.0)) == []
        assert any("session_later (1 addresses)" in line for line in monitor.said), monitor.said
    finally:
        monitor.tree.kill()


@needs_prometheus
def test_a_port_that_is_taken_and_a_time_that_is_none_are_refused_in_one_line(tmp_path, exporter):
    def refused(*options):
        told = subprocess.run(
            [sys.executable, "-m", "rl", "monitor", "--folder", str(tmp_path / "p"), *options],
            cwd=REPOSITORY,
            env=os.environ | {"RAY_TMPDIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=within(120),
        )
        assert told.returncode == 2, told.stdout + told.stderr
        (line,) = told.stderr.splitlines()
        return line

    port = exporter.rpartition(":")[2]
    assert f"--port {port}: Address already in use" in refused("--port", port)
    assert "such as 15d; got 'for ever'" in refused("--keep", "for ever")
