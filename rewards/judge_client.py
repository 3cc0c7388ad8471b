"""Requests to an OpenAI-style server: bounded in time, number and size, tried again, kept on disk.

The door to httpx.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import tempfile
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary, WeakValueDictionary

import httpx

BUSY = {408, 409, 425, 429}  # and every 5xx: worth another attempt
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 20.0  # between attempts; doubled from one to the next
MOST_BYTES = 2**20  # of a response
MOST_REPLIES = 4096  # kept in memory
ADVICE = {
    401: "; the key is wrong or missing: key_env or key_file",
    403: "; the key may not use this model: key_env or key_file",
    404: "; is url its API up to /v1, and model a name that it serves?",
}


class JudgeError(RuntimeError):
    """There is no reply, or none that can be used; the message says where from and why. It never holds a key."""


@dataclass(frozen=True, slots=True)
class JudgeServer:
    """Where it is, and how it may be asked; see rewards.judge."""

    url: str
    timeout_s: float
    retries: int
    concurrency: int
    cache_dir: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What a judge has said."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    latency_s: float  # of the attempt that succeeded, from sending it to the end of the response
    retries: int = 0
    is_cached: bool = False


class JudgeClient:
    """Asks one server, from one event loop."""

    def __init__(self, server: JudgeServer, key: str) -> None:
        """
        Raises:
            ValueError: the server cannot be asked so.
        """
        _require_usable(server)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._server, self._endpoint = server, f"{server.url.rstrip('/')}/chat/completions"
        self._key = key.encode()
        limits = httpx.Limits(max_connections=server.concurrency)
        self._client = httpx.AsyncClient(headers=headers, timeout=server.timeout_s, limits=limits)
        self._room = asyncio.Semaphore(server.concurrency)
        self._asking: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by what is asked
        self._cache = ReplyCache(server.cache_dir)

    async def ask(self, request: Mapping[str, Any]) -> Reply:
        """The reply to a request of chat completions; siblings that ask the same ask once.

        Raises:
            JudgeError: there is none after all attempts, or the server refuses the request.
        """
        name = _content_name(self._endpoint, request)
        async with self._asking.setdefault(name, asyncio.Lock()):
            if (kept := self._cache.get(name)) is not None:
                return kept
            async with self._room:
                reply = await self._with_retries(request)
            self._cache.put(name, reply)
            return reply

    async def _with_retries(self, request: Mapping[str, Any]) -> Reply:
        pause_s = FIRST_PAUSE_S
        for attempt in range(self._server.retries + 1):
            try:
                return replace(await self._attempt(request), retries=attempt)
            except _AgainError as error:
                if attempt == self._server.retries:
                    tried = f" ({attempt + 1} attempts)" if attempt else ""
                    raise JudgeError(f"judge at {self._endpoint}: {error}{tried}") from None
                await asyncio.sleep(min(error.wait_s or pause_s * random.uniform(0.5, 1.0), LONGEST_PAUSE_S))
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        raise AssertionError("unreachable")

    async def _attempt(self, request: Mapping[str, Any]) -> Reply:
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._server.timeout_s):  # httpx's own is of every read
                async with self._client.stream("POST", self._endpoint, json=request) as response:
                    body = self._without_key(await _bounded_body(response, self._endpoint))
        except (TimeoutError, httpx.TimeoutException):
            raise _AgainError(f"no reply within {self._server.timeout_s:g} s") from None
        except httpx.TransportError as error:
            raise _AgainError(f"{type(error).__name__}: {error}"[:200]) from None
        self._refuse(response, body)
        return _read(body, self._endpoint, time.monotonic() - started)

    def _without_key(self, body: bytes) -> bytes:
        """Servers repeat keys in their complaints, and what they say is kept in files."""
        return body.replace(self._key, b"[key]") if self._key else body

    def _refuse(self, response: httpx.Response, body: bytes) -> None:
        status = response.status_code
        if status == httpx.codes.OK:
            return
        told = body[:300].decode("utf-8", "replace").strip()
        said = f"answered {status} {httpx.codes.get_reason_phrase(status)}{f': {told}' if told else ''}"
        if status in BUSY or status >= 500:
            raise _AgainError(said, _retry_after_s(response))
        raise JudgeError(f"judge at {self._endpoint}: {said}{ADVICE.get(status, '')}")


class ReplyCache:
    """Replies in files, named by the content of what was asked; whatever is damaged there is asked again."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder).expanduser() if folder else None
        self._here: OrderedDict[str, Reply] = OrderedDict()  # of this process, the latest last

    def get(self, name: str) -> Reply | None:
        """The reply, if it is kept."""
        if name in self._here:
            return self._here[name]
        if self._folder is None:
            return None
        try:
            stored = json.loads((self._folder / name[:2] / f"{name}.json").read_text(encoding="utf-8"))
            reply = Reply(str(stored["text"]), int(stored["prompt_tokens"]), int(stored["completion_tokens"]), 0.0)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return self._remember(name, reply)

    def put(self, name: str, reply: Reply) -> None:
        """Keep it; where the disk does not take it, for this process only."""
        self._remember(name, reply)
        if self._folder is None:
            return
        path = self._folder / name[:2] / f"{name}.json"
        fields = ("text", "prompt_tokens", "completion_tokens")
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
                json.dump({field: getattr(reply, field) for field in fields}, file)
            os.replace(file.name, path)  # whole, or not there

    def _remember(self, name: str, reply: Reply) -> Reply:
        self._here[name] = kept = replace(reply, latency_s=0.0, retries=0, is_cached=True)
        if len(self._here) > MOST_REPLIES:
            self._here.popitem(last=False)
        return kept


_CLIENTS: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[JudgeServer, str], JudgeClient]]
_CLIENTS = WeakKeyDictionary()


def server_of(server: JudgeServer, key: str) -> JudgeClient:
    """The client of this event loop for a server: connections are kept from call to call.

    Raises:
        ValueError: the server cannot be asked so.
    """
    clients = _CLIENTS.setdefault(asyncio.get_running_loop(), {})
    if (server, key) not in clients:
        clients[server, key] = JudgeClient(server, key)
    return clients[server, key]


class _AgainError(Exception):
    """An attempt has failed in a way that may pass."""

    def __init__(self, why: str, wait_s: float = 0.0) -> None:
        super().__init__(why)
        self.wait_s = wait_s


async def _bounded_body(response: httpx.Response, endpoint: str) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > MOST_BYTES:
            raise JudgeError(f"judge at {endpoint}: a response of more than {MOST_BYTES} bytes")
    return bytes(body)


def _read(body: bytes, endpoint: str, latency_s: float) -> Reply:
    """A body of chat completions.

    Raises:
        JudgeError: it is something else.
    """
    try:
        answer = json.loads(body)
        text, usage = answer["choices"][0]["message"]["content"], answer.get("usage") or {}
        tokens = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        shown = body[:200].decode("utf-8", "replace")
        raise JudgeError(f"judge at {endpoint}: its response is none of chat completions: {shown!r}") from None
    if not isinstance(text, str) or not text.strip():
        raise JudgeError(f"judge at {endpoint}: its reply has no text; raise max_tokens if it is one that thinks")
    return Reply(text, *tokens, latency_s)


def _retry_after_s(response: httpx.Response) -> float:
    """Seconds that the server asks to wait; 0 if it asks for none, or for a date."""
    with suppress(ValueError):
        return max(0.0, float(response.headers.get("retry-after", "")))
    return 0.0


def _content_name(endpoint: str, request: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([endpoint, request], sort_keys=True).encode()).hexdigest()


def _require_usable(server: JudgeServer) -> None:
    parts = urlsplit(server.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"url must be an http or https address such as http://127.0.0.1:8000/v1, got {server.url!r}")
    if parts.username or parts.password:
        raise ValueError(
            "url holds a user or a password, which the configuration would spread: use key_env or key_file"
        )
    if not (server.timeout_s > 0 and server.retries >= 0 and server.concurrency >= 1):
        raise ValueError("timeout_s must be > 0, retries >= 0 and concurrency >= 1")
