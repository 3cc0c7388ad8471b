"""Pages served to this machine: loopback only, under their own host's name only, and nothing but what they answer.

A request whose Host is not this machine's loopback is refused, so that a name that resolves to it cannot read a run.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
REQUEST_S = 30.0  # a connection that is silent for so long is closed
DATA_POLICY = "default-src 'none'"


@dataclass(frozen=True, slots=True)
class Reply:
    """What a page's request is answered with."""

    body: bytes  # of a page its text, of data gzip of JSON
    policy: str = ""  # of a page; empty: this is data
    tag: str = ""  # changes with the data; empty: it is sent each time


class Site(Protocol):
    """Pages and their data."""

    def answer(self, path: str) -> Reply | None:
        """What lies at a path, with its query; None: nothing does."""
        ...


class PageServer(ThreadingHTTPServer):
    """Serves a site. A client that disconnects in the middle of an answer is not an error."""

    def __init__(self, site: Site, port: int) -> None:
        """
        Args:
            port: on loopback; 0 takes a free one.
        Raises:
            OSError: the port is taken.
        """
        super().__init__((LOOPBACK, port), _Answer)
        self.site = site

    @property
    def address(self) -> str:
        """Of the first page."""
        return f"http://{LOOPBACK}:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Called while an exception is handled."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            log.exception("a request to the page failed")


class _Answer(BaseHTTPRequestHandler):
    """One request."""

    server: PageServer
    server_version, sys_version, timeout = "dynframe", "", REQUEST_S

    def do_GET(self) -> None:
        if not self._is_for_us():
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, b"this page is served to this machine only\n")
        elif (reply := self.server.site.answer(self.path)) is None:
            self._refuse(HTTPStatus.NOT_FOUND, b"not found\n")
        elif reply.policy:
            self._send(HTTPStatus.OK, reply.body, "text/html; charset=utf-8", reply.policy)
        elif reply.tag and self.headers.get("If-None-Match") == reply.tag:
            self._send(HTTPStatus.NOT_MODIFIED, b"", None)
        else:
            tag = {"ETag": reply.tag} if reply.tag else {}
            self._send(HTTPStatus.OK, reply.body, "application/json", **{"Content-Encoding": "gzip"}, **tag)

    def _is_for_us(self) -> bool:
        own = self.server.server_address[1]
        return self.headers.get("Host", "") in (f"127.0.0.1:{own}", f"localhost:{own}")

    def _refuse(self, status: HTTPStatus, why: bytes) -> None:
        self._send(status, why, "text/plain")

    def _send(
        self, status: HTTPStatus, body: bytes, kind: str | None, policy: str = DATA_POLICY, **headers: str
    ) -> None:
        self.send_response(status)
        if kind is not None:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", f"{policy}; frame-ancestors 'none'")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Requests are not worth a line."""


def serve(site: Site, port: int, ready: Callable[[str], None]) -> None:
    """Serve until interrupted (Ctrl-C).

    Args:
        ready: called with the first page's address once it answers.
    Raises:
        OSError: the port is taken.
    """
    with PageServer(site, port) as server:
        ready(server.address)
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            return
