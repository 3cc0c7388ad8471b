"""Decoding in a process that can be killed: both ends of the pipe.

The parent starts `python -m envs.video.decode_process FD` with a socket; a request that takes more processor time than
it may, stands still, or needs more memory than the process may have ends with the process, and the next request starts
another. The child imports the decoders and numpy, nothing large beside them.

| who waits | for what | how long | who frees it |
|---|---|---|---|
| a request | its turn | the deadlines of those before it | the lock |
| a request | a process that starts | START_S | the poll ends, the process is killed |
| a request | the answer | see `envs.video.deadline`, twice if memory ran out at first | the process is killed |
| a request | the end of a killed process | END_S | it is left behind, with a warning |

Legend: T frames asked for · H W pixels · C colours (RGB).
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from envs.video.clip_check import ClipCheck
from envs.video.deadline import Deadline, TimeLimits, cpu_seconds
from envs.video.decode_memory import MIB, limit_data, resident_bytes
from envs.video.decoder import Decoder
from envs.video.file import VideoError, VideoMemoryError, VideoTimeoutError
from envs.video.index import VideoIndex
from rl.trajectory import Fault

log = logging.getLogger(__name__)

ORPHAN_POLL_S = 2.0
START_S = 300.0  # to start a process, before the first deadline begins: half a second's work, on a busy machine minutes
STALL_TIMEOUT_S = 120.0  # without any processor time
CHECK_FRAMES = 1024  # of a clip that is checked: each as many have the time of a request
END_S = 5.0  # for a killed process to be gone; one that waits for a dead disk or server may not go at all
MEMORY_BYTES = 2048 * MIB  # of a process, beyond its frame cache
FAULTS = {  # why a child is replaced before it is worn
    "deadline": "was killed at its deadline",
    "death": "died",
    "memory": "ran out of memory",
}
WORN_REQUESTS = 1000  # a process is replaced after as many: decoders leak
WORN_SHARE = 0.5  # of its memory, held between two requests: that is a leak
READY = "ready"
PROJECT = Path(__file__).parents[2]
LOADED_LATE = ("av.subtitles.stream", "numpy.ma")  # by the first request, which would have no room for them


class DecoderDiedError(VideoError):
    """The decoding process ended in the middle of a request."""


class DecodeProcess:
    """Parent's end: a Decoder elsewhere, with a deadline per request and a limit to its memory. One request at a time;
    others wait their turn."""

    def __init__(
        self,
        backend: str,
        frame_cache_bytes: int,
        timeout_s: float,
        memory_bytes: int = MEMORY_BYTES,
        worn_requests: int = WORN_REQUESTS,
        *,
        stall_timeout_s: float = STALL_TIMEOUT_S,
        frame_cache_disk_bytes: int = 0,
    ) -> None:
        """
        Args:
            timeout_s: processor time of one request.
            memory_bytes: beyond the frame cache.
            worn_requests: a process that has answered as many is replaced before the next.
            stall_timeout_s: of a request that uses no processor time at all.
            frame_cache_disk_bytes: of decoded frames kept in temporary files.
        """
        self._backend, self._frame_cache_bytes = backend, frame_cache_bytes
        self._limits, self._disk_bytes = TimeLimits(timeout_s, stall_timeout_s), frame_cache_disk_bytes
        self._memory_bytes, self._worn_requests = memory_bytes, worn_requests
        self._turn = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._socket: socket.socket | None = None
        self._pipe: Connection | None = None
        self._answered = 0  # by this process
        self._progress = 0  # requests answered by all of them
        self._asked = ""  # the latest clip
        self.replaced: Counter[str] = Counter()  # processes, by cause: deadline, death, memory, worn
        self._faults: list[Fault] = []
        self._noting = threading.Lock()  # faults: who takes them does not wait for a request

    @property
    def pid(self) -> int | None:
        """Of the living child, if there is one."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def describe(self, path: str) -> VideoIndex:
        """As Decoder.describe; also VideoTimeoutError, VideoMemoryError, DecoderDiedError."""
        return self._ask(path, self._limits, "describe", path)

    def frames(
        self,
        path: str,
        times_s: Sequence[float],
        size_HW: tuple[int, int],
        later_HW: tuple[int, int] | None = None,
    ) -> tuple[np.ndarray, tuple[float, ...], int]:
        """As Decoder.frames; also VideoTimeoutError, VideoMemoryError, DecoderDiedError."""
        return self._ask(path, self._limits, "frames", path, tuple(times_s), size_HW, later_HW)

    def check(self, path: str, sample: bool) -> ClipCheck:
        """As Decoder.check, with the time of a request for every CHECK_FRAMES frames; also VideoTimeoutError,
        VideoMemoryError, DecoderDiedError."""
        num_frames = self.describe(path).num_frames
        limits = replace(self._limits, cpu_s=self._limits.cpu_s * (2 + num_frames // CHECK_FRAMES))
        return self._ask(path, limits, "check", path, sample)

    def progress(self) -> int:
        """A number that changes as long as the process gets on with its requests; asked while others wait for them."""
        process = self._process
        return self._progress + (0 if process is None else int(cpu_seconds(process.pid)))

    def take_faults(self) -> list[Fault]:
        """Children that broke and were replaced since the last call of this method; the worn are no fault."""
        with self._noting:
            faults, self._faults = self._faults, []
        return faults

    def close(self) -> None:
        """End the child."""
        with self._turn:
            self._end()

    def _ask(self, path: str, limits: TimeLimits, method: str, *arguments: Any) -> Any:
        with self._turn:
            self._asked = path
            if self._process is not None and self.pid is None:
                self._replace("death", "")
            elif self.pid is not None and self._is_worn():
                self._replace("worn", path)
            if self.pid is None:
                self._start(path)
            was_fresh = self._answered == 0
            try:
                return self._answer(path, limits, method, arguments)
            except VideoMemoryError:
                if was_fresh:
                    raise
            except DecoderDiedError:  # killed by somebody; a clip that crashes decoders crashes the next one too
                pass
            self._start(path)  # what the clips before left behind is not this clip's fault
            return self._answer(path, limits, method, arguments)

    def _answer(self, path: str, limits: TimeLimits, method: str, arguments: tuple[Any, ...]) -> Any:
        deadline = Deadline(limits, self._process.pid, partial(self._kill_overdue, self._process, self._socket))
        try:
            with deadline:
                self._pipe.send((method, arguments))
                is_error, answer = receive(self._pipe)
        except (EOFError, OSError) as error:
            excess = deadline.excess
            code = self._replace("deadline" if excess else "death", path)
            if excess:
                raise VideoTimeoutError(path, excess.problem, excess.remedy) from error
            problem = f"the decoding process died ({_ending(code)})"
            raise DecoderDiedError(path, problem, "check memory, or drop the row if it always happens") from error
        self._answered, self._progress = self._answered + 1, self._progress + 1
        if deadline.excess or isinstance(answer, VideoMemoryError):
            self._replace("deadline" if deadline.excess else "memory", path)
        if is_error:
            raise answer
        return answer

    @staticmethod
    def _kill_overdue(process: subprocess.Popen, pipe: socket.socket) -> None:
        process.kill()
        with suppress(OSError):  # already closed: it ended by itself just now
            pipe.shutdown(socket.SHUT_RDWR)  # a process stuck in the kernel outlives its kill; nobody waits for it

    def _is_worn(self) -> bool:
        held_at_most = self._frame_cache_bytes + WORN_SHARE * self._memory_bytes
        return self._answered >= self._worn_requests or resident_bytes(self._process.pid) > held_at_most

    def _replace(self, cause: str, path: str) -> int | None:
        """End the child, and its frame cache with it; the next request starts another.

        Args:
            path: what it was asked for; empty: nothing.
        """
        self.replaced[cause] += 1
        code = self._end()
        if cause in FAULTS:
            what = f"{FAULTS[cause]} {f'while it read {path}' if path else 'between two requests'}"
            fault = Fault(f"decoder_{cause}", "decoder", what, "the next request starts another", time.time(), 0.0)
            with self._noting:
                self._faults.append(fault)
        return code

    def _start(self, path: str) -> None:
        self._end()
        began_s = time.time()
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-m", "envs.video.decode_process", str(theirs.fileno()), self._backend]
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # each thread has a stack that counts
        search_path = os.pathsep.join([str(PROJECT), *filter(None, sys.path)])
        sizes = (self._frame_cache_bytes, self._memory_bytes, self._disk_bytes, os.getpid())
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [*command, *map(str, sizes), str(self._limits.cpu_s)],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, **one_thread, "PYTHONPATH": search_path},
                )
        except OSError as error:
            ours.close()
            problem = f"no decoding process could be started ({error.strerror})"
            raise DecoderDiedError(path, problem, "check free memory and the limit of processes") from error
        self._socket, self._pipe, self._answered = ours, Connection(os.dup(ours.fileno())), 0
        try:
            is_ready = self._pipe.poll(START_S) and self._pipe.recv() == READY
        except (EOFError, OSError):
            is_ready = False
        if not is_ready:
            problem = f"no decoding process could be started ({_ending(self._replace('death', path))})"
            raise DecoderDiedError(path, problem, "see its message above; check free memory")
        with self._noting:
            if self._faults and not self._faults[-1].recovery_s:
                self._faults[-1] = replace(self._faults[-1], recovery_s=time.time() - began_s)

    def _end(self) -> int | None:
        """Kill and reap the child; its exit code."""
        if self._pipe is not None:
            self._pipe.close()
            self._socket.close()
        process, self._process, self._pipe, self._socket = self._process, None, None, None
        if process is None:
            return None
        process.kill()
        try:
            return process.wait(END_S)
        except subprocess.TimeoutExpired:
            log.warning(
                "%s: decoding process %d does not end, though killed: it is left behind", self._asked, process.pid
            )
            return None


def _ending(code: int | None) -> str:
    if code is None:
        return "it does not end, though killed"
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


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


def main(
    pipe_fd: int,
    backend: str,
    frame_cache_bytes: int,
    memory_bytes: int,
    disk_bytes: int,
    parent: int,
    cpu_limit_s: float,
) -> None:
    """Child's end: answer until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    for name in LOADED_LATE:
        importlib.import_module(name)
    limit_data(frame_cache_bytes + memory_bytes)
    decoder, pipe = Decoder(backend, frame_cache_bytes, memory_bytes, disk_bytes, cpu_limit_s), Connection(pipe_fd)
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
    main(int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:7]), float(sys.argv[7]))
