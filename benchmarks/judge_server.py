"""A server in the form of chat completions that does what it is told: answer, hang, fail, throttle, lie."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Todo = Callable[[BaseHTTPRequestHandler], None]  # what is done with a request


def completion(text: str | None, **usage: int) -> str:
    """The body of a reply."""
    usage = {"prompt_tokens": 100, "completion_tokens": 10} | usage
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage})


class Behaviour:
    """What the server does with its requests, one after the other, and what they were; the last of `plan` goes on."""

    def __init__(self, plan: Sequence[Todo], chosen_by: Callable[[bytes], Todo] | None) -> None:
        self.plan, self.requests, self.keys, self.at_once, self.most_at_once = list(plan), [], [], 0, 0
        self.lock, self.released, self._chosen_by = threading.Lock(), threading.Event(), chosen_by

    @contextlib.contextmanager
    def request(self, body: bytes, key: str) -> Iterator[Todo]:
        """A request that is being answered."""
        with self.lock:
            self.requests.append(json.loads(body))
            self.keys.append(key)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            todo = None if self._chosen_by else self.plan.pop(0) if len(self.plan) > 1 else self.plan[0]
        try:
            yield todo or self._chosen_by(body)
        finally:
            with self.lock:
                self.at_once -= 1


def says(
    text: str | None,
    status: int = 200,
    headers: Sequence[tuple[str, str]] = (),
    after: threading.Event | None = None,
    **usage: int,
) -> Todo:
    """A reply; `after`: an event that is waited for first."""

    def handle(handler: BaseHTTPRequestHandler) -> None:
        if after is not None:
            after.wait(30)
        body = (completion(text, **usage) if status == 200 else text).encode()
        respond(handler, status, body, headers)

    return handle


def sends(body: bytes) -> Todo:
    """Bytes that are no completion."""
    return lambda handler: respond(handler, 200, body)


def hangs(handler: BaseHTTPRequestHandler) -> None:
    """Nothing, until the test is over."""
    handler.behaviour.released.wait(60)
    drops(handler)


def drops(handler: BaseHTTPRequestHandler) -> None:
    """The connection ends in the middle."""
    handler.close_connection = True
    handler.connection.close()


def drips(handler: BaseHTTPRequestHandler) -> None:
    """A byte now and then: no read ever times out."""
    handler.send_response(200)
    handler.send_header("content-length", "100000")
    handler.end_headers()
    with contextlib.suppress(OSError):
        while not handler.behaviour.released.wait(0.05):
            handler.wfile.write(b" ")
            handler.wfile.flush()
    drops(handler)


def respond(handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: Sequence[tuple[str, str]] = ()) -> None:
    """A whole response, unless nobody waits for it any more."""
    with contextlib.suppress(OSError):
        handler.send_response(status)
        for name, value in (*headers, ("content-length", str(len(body)))):
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)


@contextlib.contextmanager
def judge_server(*plan: Todo, chosen_by: Callable[[bytes], Todo] | None = None) -> Iterator[tuple[str, Behaviour]]:
    """(address of its API, Behaviour).

    Args:
        chosen_by: says what is done with a request, in place of `plan`; may take its time.
    """
    behaviour = Behaviour(plan, chosen_by)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 5.0  # seconds that a connection may be idle: its thread ends with it

        def do_POST(self):
            self.behaviour = behaviour
            body = self.rfile.read(int(self.headers["content-length"]))
            with behaviour.request(body, self.headers.get("authorization", "")) as todo:
                todo(self)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", behaviour
    finally:
        behaviour.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
