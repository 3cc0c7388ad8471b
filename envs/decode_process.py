"""Decoding in a process that can be killed: both ends of the pipe.

The parent starts `python -m envs.decode_process FD` with a socket; a request that outlives its deadline ends with the
process, and the next request starts another. The child imports the decoders and numpy, nothing else.

Legend: T frames asked for · H W pixels · C colours (RGB).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from envs.frame_store import FrameStore, read_frames_through
from envs.video_index import VideoError, VideoIndex, VideoTimeoutError, index_video

BACKENDS = ("pyav", "decord")
ORPHAN_POLL_S = 2.0
START_S = 60.0  # to start a process, before the first deadline begins
READY = "ready"
PROJECT = Path(__file__).parents[1]


class DecoderDiedError(VideoError):
    """The decoding process ended in the middle of a request."""


class Decoder:
    """Answers requests where it stands: the work itself, in the caller's process or in a child's."""

    def __init__(self, backend: str, store_bytes: int) -> None:
        if backend not in BACKENDS:
            raise ValueError(f"video.backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
        self._backend = backend
        self.store = FrameStore(store_bytes)

    def describe(self, path: str) -> VideoIndex:
        """Index of a video; see index_video."""
        return index_video(path)

    def frames(
        self, path: str, times_s: Sequence[float], size_HW: tuple[int, int]
    ) -> tuple[np.ndarray, tuple[float, ...], int]:
        """Frames on screen at these times; see read_frames."""
        index = index_video(path)
        if self._backend == "decord":
            from envs.video_decord import read_frames_decord  # the library is loaded only by those who choose it

            return read_frames_decord(index, times_s, size_HW)
        return read_frames_through(self.store, index, times_s, size_HW)

    def close(self) -> None:
        """Nothing is held open."""


class DecodeProcess:
    """Parent's end: a Decoder elsewhere, with a deadline per request. One request at a time; others wait their turn."""

    def __init__(self, backend: str, store_bytes: int, timeout_s: float) -> None:
        self._backend, self._store_bytes, self._timeout_s = backend, store_bytes, timeout_s
        self._turn = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._pipe: Connection | None = None

    @property
    def pid(self) -> int | None:
        """Of the living child, if there is one."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def describe(self, path: str) -> VideoIndex:
        """As Decoder.describe; also VideoTimeoutError, DecoderDiedError."""
        return self._ask(path, "describe", path)

    def frames(
        self, path: str, times_s: Sequence[float], size_HW: tuple[int, int]
    ) -> tuple[np.ndarray, tuple[float, ...], int]:
        """As Decoder.frames; also VideoTimeoutError, DecoderDiedError."""
        return self._ask(path, "frames", path, tuple(times_s), size_HW)

    def close(self) -> None:
        """End the child."""
        with self._turn:
            self._end()

    def _ask(self, path: str, method: str, *arguments: Any) -> Any:
        with self._turn:
            if self.pid is None:
                self._start(path)
            overdue = threading.Event()
            deadline = threading.Timer(self._timeout_s, self._kill_overdue, (self._process, overdue))
            deadline.daemon = True
            deadline.start()
            try:
                self._pipe.send((method, arguments))
                is_error, answer = receive(self._pipe)
            except (EOFError, OSError) as error:
                code = self._end()
                if overdue.is_set():
                    problem = f"decoding did not end within {self._timeout_s:g} s and was killed"
                    raise VideoTimeoutError(path, problem, "raise video.decode_timeout_s or drop the row") from error
                problem = f"the decoding process died ({_ending(code)})"
                raise DecoderDiedError(path, problem, "check memory, or drop the row if it always happens") from error
            finally:
                deadline.cancel()
        if is_error:
            raise answer
        return answer

    @staticmethod
    def _kill_overdue(process: subprocess.Popen, overdue: threading.Event) -> None:
        overdue.set()
        process.kill()

    def _start(self, path: str) -> None:
        self._end()
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "envs.decode_process", str(theirs.fileno()), self._backend]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT), *filter(None, sys.path)])}
        with theirs:
            self._process = subprocess.Popen(
                [*command, str(self._store_bytes), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
            )
        self._pipe = Connection(ours.detach())
        try:
            is_ready = self._pipe.poll(START_S) and self._pipe.recv() == READY
        except (EOFError, OSError):
            is_ready = False
        if not is_ready:
            problem = f"no decoding process could be started ({_ending(self._end())})"
            raise DecoderDiedError(path, problem, "see its message above; check free memory")

    def _end(self) -> int | None:
        """Kill and reap the child; its exit code."""
        if self._pipe is not None:
            self._pipe.close()
        if self._process is None:
            return None
        self._process.kill()
        code = self._process.wait()
        self._process = self._pipe = None
        return code


def _ending(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


def send(pipe: Connection, is_error: bool, answer: Any) -> None:
    """Pixels travel beside the pickled rest, uncopied."""
    if isinstance(answer, tuple) and isinstance(answer[0], np.ndarray):
        pixels_THWC = np.ascontiguousarray(answer[0])
        pipe.send((is_error, answer[1:], pixels_THWC.shape))
        pipe.send_bytes(memoryview(pixels_THWC).cast("B"))
    else:
        pipe.send((is_error, answer, None))


def receive(pipe: Connection) -> tuple[bool, Any]:
    """What `send` sent."""
    is_error, answer, shape = pipe.recv()
    if shape is None:
        return is_error, answer
    pixels_THWC = np.empty(shape, dtype=np.uint8)
    pipe.recv_bytes_into(memoryview(pixels_THWC).cast("B"))
    return is_error, (pixels_THWC, *answer)


def main(pipe_fd: int, backend: str, store_bytes: int, parent: int) -> None:
    """Child's end: answer until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    decoder, pipe = Decoder(backend, store_bytes), Connection(pipe_fd)
    pipe.send(READY)
    while True:
        try:
            method, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer, is_error = getattr(decoder, method)(*arguments), False
        except Exception as error:  # carried to the caller, who raises it
            answer, is_error = error, True
        send(pipe, is_error, answer)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(ORPHAN_POLL_S)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
