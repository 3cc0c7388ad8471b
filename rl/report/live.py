"""The report of a live run, served on loopback: the page, and its data as they grow. Nothing else is served.

    GET /                     the page, without data
    GET /data/run             index: curves, tables, list of groups; 304 where nothing changed
    GET /data/step/ID         details of a step
    GET /data/clip/NUMBER     thumbnails of a clip, decoded when first asked for

A request whose Host is not this machine's loopback is refused, so that a name that resolves to it cannot read the run.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from rl.report.build import RunData, StepCache, file_state, read_run, run_index
from rl.report.page import content_policy, render
from rl.report.run_files import step_files
from rl.report.steps import packed
from rl.report.thumbnails import LADDER, ClipThumbnails, FrameSource, clip_thumbnails
from rl.tracking.failures import FAILURES
from rl.tracking.faults import FAULTS
from rl.tracking.lanes import LANES

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
ROUTE = re.compile(r"/data/(run|step|clip)(?:/(h?\d{1,12}))?")
REQUEST_S = 30.0  # a connection that is silent for so long is closed
WATCHED = ("metrics.jsonl", FAILURES, FAULTS, LANES, "config.yaml", "summary.json")


class LiveRun:
    """The data of the page, read again when files change. Thread-safe."""

    def __init__(self, run: Path, source: FrameSource) -> None:
        self._run, self._source = run, source
        self._lock, self._decoding = threading.Lock(), threading.Lock()
        self._cache = StepCache()
        self._state: tuple | None = None
        self._data: RunData | None = None
        self._index = b""
        self._numbers: dict[str, int] = {}  # of clips; they never change
        self._clips: dict[str, tuple[frozenset[int], ClipThumbnails]] = {}

    def index(self) -> tuple[bytes, str]:
        """gzip of the index, and a tag that changes with it."""
        with self._lock:
            self._refresh()
            return self._index, f'"{abs(hash(self._state)):x}"'

    def step(self, name: str) -> bytes | None:
        """gzip of a step's details; None: there is no such step."""
        with self._lock:
            self._refresh()
            return next((step.full for step in self._data.steps if step.id == name), None)

    def clip(self, number: int) -> bytes | None:
        """gzip of a clip's thumbnails, as many as its trajectories have by now; None: there is no such clip."""
        with self._lock:
            self._refresh()
            video = next((video for video, known in self._numbers.items() if known == number), None)
            if video is None:
                return None
            needs = (need for step in self._data.steps for need in step.needs if need.video == video)
            times_ms = frozenset(time for need in needs for time in need.times_ms)
        with self._decoding:  # not the other lock: curves do not wait for a slow clip
            if video not in self._clips or self._clips[video][0] != times_ms:
                self._clips[video] = times_ms, clip_thumbnails(video, sorted(times_ms), self._source, LADDER[0])
            clip = self._clips[video][1]
        return packed({"problem": clip.problem, "images": clip.images})

    def _refresh(self) -> None:
        state = self._files_state()
        if state == self._state:
            return
        self._data = read_run(self._run, self._cache)
        for step in self._data.steps:
            for need in step.needs:
                self._numbers.setdefault(need.video, len(self._numbers))
        clips = {video: {"id": number, "duration_s": None} for video, number in self._numbers.items()}
        self._index, self._state = packed(run_index(self._data, clips, ())), state

    def _files_state(self) -> tuple:
        files = [self._run / name for name in WATCHED]
        files += [file.path for file in step_files(self._run)] + sorted((self._run / "eval").glob("*/metrics.json"))
        return tuple((str(path), *file_state(path)) for path in files)


class ReportServer(ThreadingHTTPServer):
    """Serves the page and data of one run. A client that disconnects in the middle of an answer is not an error."""

    def __init__(self, run: Path, source: FrameSource, port: int) -> None:
        """
        Args:
            port: on loopback; 0 takes a free one.
        Raises:
            OSError: the port is taken.
        """
        super().__init__((LOOPBACK, port), _Answer)
        self.live = LiveRun(run, source)
        self.page = render(run.name, (), live=True).encode("utf-8")
        self.policy = content_policy(live=True)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Called while an exception is handled."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            log.exception("a request to the page failed")


class _Answer(BaseHTTPRequestHandler):
    """One request."""

    server: ReportServer
    server_version, sys_version, timeout = "dynframe", "", REQUEST_S

    def do_GET(self) -> None:
        if not self._is_for_us():
            self._send(HTTPStatus.MISDIRECTED_REQUEST, b"this page is served to this machine only\n", "text/plain")
        elif self.path == "/":
            self._send(HTTPStatus.OK, self.server.page, "text/html; charset=utf-8")
        elif route := ROUTE.fullmatch(self.path):
            self._data(route[1], route[2])
        else:
            self._send(HTTPStatus.NOT_FOUND, b"not found\n", "text/plain")

    def _is_for_us(self) -> bool:
        own = self.server.server_address[1]
        return self.headers.get("Host", "") in (f"127.0.0.1:{own}", f"localhost:{own}")

    def _data(self, kind: str, name: str | None) -> None:
        if kind == "run" and name is None:
            index, tag = self.server.live.index()
            if self.headers.get("If-None-Match") == tag:
                self._send(HTTPStatus.NOT_MODIFIED, b"", None)
            else:
                self._send(HTTPStatus.OK, index, "application/json", ETag=tag)
            return
        found = None
        if kind == "step" and name is not None:
            found = self.server.live.step(name)
        elif kind == "clip" and name is not None and name.isdigit():
            found = self.server.live.clip(int(name))
        if found is None:
            self._send(HTTPStatus.NOT_FOUND, b"not found\n", "text/plain")
        else:
            self._send(HTTPStatus.OK, found, "application/json")

    def _send(self, status: HTTPStatus, body: bytes, kind: str | None, **headers: str) -> None:
        self.send_response(status)
        if kind is not None:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
        if kind == "application/json":
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Security-Policy", f"{self.server.policy}; frame-ancestors 'none'")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Requests are not worth a line."""


def serve(run: Path, source: FrameSource, port: int, ready: Callable[[str], None]) -> None:
    """Serve until interrupted (Ctrl-C).

    Args:
        ready: called with the page's address once it answers.
    Raises:
        OSError: the port is taken.
    """
    with ReportServer(run, source, port) as server:
        ready(f"http://{LOOPBACK}:{server.server_address[1]}/")
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            return
