"""A Prometheus beside the runs of this machine, on loopback: `dynframe monitor`.

the Rays' own lists ─▶ targets.json ─▶ Prometheus ─▶ curves, alerts, Grafana
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from actors.cluster.session import end_with_parent
from rl.config.errors import ConfigError, require, shown
from rl.monitoring.targets import RaySession, running_sessions, write_targets

CLUSTER = Path(__file__).parents[2] / "cluster"
PROGRAM = "prometheus"
HOST = "127.0.0.1"
REFRESH_S = 5.0  # between two looks at which Rays run
START_TIMEOUT_S, STOP_TIMEOUT_S = 60.0, 30.0
LOG, TARGETS, CONFIG, SAMPLES = "prometheus.log", "targets.json", "prometheus.yml", "samples"
LAST_LINES = 3  # of its log, where it ended by itself
INSTALL = (
    "install it: `apt-get install prometheus` (Debian, Ubuntu; `systemctl disable --now prometheus` if its service is "
    "not wanted), `brew install prometheus`, or the archive of https://prometheus.io/download, unpacked onto PATH"
)

Say = Callable[[str], None]


def monitor(folder: Path, rays: Path, *, port: int, every_s: int, keep: str, say: Say) -> None:
    """Run Prometheus until this process is interrupted or Prometheus ends.

    Args:
        folder: its configuration, log and samples; made if it is missing.
        rays: where Rays keep their sessions.
        every_s: seconds between two samples.
        keep: how long samples are kept, as Prometheus writes it, such as 15d.
    Raises:
        ConfigError: there is no Prometheus, an option cannot be, or it does not start.
        RuntimeError: it ended by itself.
    """
    program = find_prometheus()
    require(
        re.fullmatch(r"[1-9]\d*(s|m|h|d|w|y)", keep) is not None,
        f"--keep must be a number and one of s, m, h, d, w, y, such as 15d; got {shown(keep)}",
    )
    _require_free(port)
    folder.mkdir(parents=True, exist_ok=True)
    write_targets(folder / TARGETS, running_sessions(rays))
    (folder / CONFIG).write_text(yaml.safe_dump(config_for(folder, every_s), sort_keys=False), encoding="utf-8")
    with _running(program, folder, port, keep) as process:
        _wait_ready(process, folder, port)
        say(f"Prometheus: http://{HOST}:{port} (alerts: http://{HOST}:{port}/alerts); samples, log: {folder}")
        say(f"Grafana, if it is installed: {grafana_command(port)}")
        _follow(process, folder, rays, say)
        raise RuntimeError(f"Prometheus ended with code {process.returncode}: {_last_lines(folder)}")


def find_prometheus() -> str:
    """The program.

    Raises:
        ConfigError: it is not on PATH; how to get it.
    """
    if (program := shutil.which(PROGRAM)) is None:
        raise ConfigError(f"no program `{PROGRAM}` on PATH; {INSTALL}")
    return program


def _require_free(port: int) -> None:
    """Another Prometheus on this port would answer in the place of ours."""
    with socket.socket() as tried:
        try:
            tried.bind((HOST, port))
        except OSError as error:
            raise ConfigError(f"--port {port}: {error.strerror}; choose another one") from error


def config_for(folder: Path, every_s: int) -> dict[str, Any]:
    """cluster/prometheus.yml for the Rays of this machine."""
    config = yaml.safe_load((CLUSTER / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = dict.fromkeys(config["global"], f"{every_s}s")
    config["rule_files"] = [str(CLUSTER / name) for name in config["rule_files"]]
    (scraped,) = config["scrape_configs"]
    scraped["file_sd_configs"] = [
        {"files": [str((folder / TARGETS).absolute())], "refresh_interval": f"{REFRESH_S:g}s"}
    ]
    return config


def grafana_command(port: int) -> str:
    """Grafana on loopback with the dashboards that are shipped, as one line for a shell."""
    dashboards = CLUSTER / "grafana"
    return (
        f"DYNFRAME_PROMETHEUS=http://{HOST}:{port} DYNFRAME_DASHBOARDS={dashboards} "
        f"GF_PATHS_PROVISIONING={dashboards}/provisioning GF_SERVER_HTTP_ADDR={HOST} "
        "grafana server --homepath /usr/share/grafana"
    )


@contextmanager
def _running(program: str, folder: Path, port: int, keep: str) -> Iterator[subprocess.Popen]:
    """Prometheus in a session of its own, so that Ctrl-C reaches it through us; it ends with this process."""
    arguments = [
        f"--config.file={folder / CONFIG}",
        f"--storage.tsdb.path={folder / SAMPLES}",
        f"--storage.tsdb.retention.time={keep}",
        f"--web.listen-address={HOST}:{port}",
    ]
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_parent if sys.platform == "linux" else None,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_TIMEOUT_S)


def _wait_ready(process: subprocess.Popen, folder: Path, port: int) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline_s:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/-/ready", timeout=START_TIMEOUT_S) as answer:
                if answer.status == 200 and process.poll() is None:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    why = "it did not answer in time" if process.poll() is None else _last_lines(folder)
    raise ConfigError(f"Prometheus does not start: {why}; --port takes another port, --folder another folder")


def _follow(process: subprocess.Popen, folder: Path, rays: Path, say: Say) -> None:
    """Keep the list of addresses up to date until Prometheus ends."""
    known: list[RaySession] | None = None
    while True:
        sessions = running_sessions(rays)
        if sessions != known:
            write_targets(folder / TARGETS, sessions)
            known = sessions
            say(_told(sessions, rays))
        try:
            process.wait(REFRESH_S)
        except subprocess.TimeoutExpired:
            continue
        return


def _told(sessions: list[RaySession], rays: Path) -> str:
    if not sessions:
        return f"no Ray with a dashboard runs here ({rays}); waiting for one (a run has one: placement.dashboard)"
    each = ", ".join(f"{session.name} ({len(session.addresses)} addresses)" for session in sessions)
    return f"numbers come from {each}"


def _last_lines(folder: Path) -> str:
    lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    return " | ".join(lines[-LAST_LINES:]) or "it has said nothing"
