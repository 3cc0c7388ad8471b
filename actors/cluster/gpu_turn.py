"""Turns on a GPU that several workers share: one of them starts at a time.

vLLM measures how much memory is free when it starts, and takes what another process allocates or frees meanwhile for
its own: its KV cache comes out too small, or it gives up. The turn is a lock per GPU and node, so that it holds for
replacements, too.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

POLL_S = 0.2
OPENED = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC  # a link planted under that name leads nowhere


class GpuTurnError(RuntimeError):
    """A lock file cannot be used; names it, and what to do."""


@contextmanager
def gpu_turn(gpu_ids: Sequence[object], timeout_s: float, folder: str | Path | None = None) -> Iterator[None]:
    """Have the named GPUs of this node to oneself among the workers that ask for a turn.

    Args:
        gpu_ids: as Ray names them; none: there is nothing to wait for.
        folder: of the lock files, on this node; None: the folder for temporary files.
    Raises:
        TimeoutError: another worker has kept its turn for `timeout_s`.
        GpuTurnError: the lock file is a link, or somebody else's, or the folder takes no file.
    """
    home, deadline = Path(folder or tempfile.gettempdir()), time.monotonic() + timeout_s
    with ExitStack() as turns:
        for gpu in sorted(map(str, gpu_ids)):  # in one order: nobody waits in a circle
            descriptor = _opened(home / f"dynframe-rl-{os.getuid()}-gpu-{gpu}.lock")
            turns.callback(os.close, descriptor)
            while not _locked(descriptor):
                if time.monotonic() >= deadline:
                    raise TimeoutError(f"another worker on GPU {gpu} has not started within {timeout_s:.0f} s")
                time.sleep(POLL_S)
        yield


def _opened(path: Path) -> int:
    """A lock file of this user's, made if it is not there; what is in it stays."""
    remedy = "delete it, or set TMPDIR on this node to a folder that is yours alone"
    try:
        descriptor = os.open(path, OPENED, 0o600)
    except OSError as error:
        raise GpuTurnError(f"{path}: cannot be opened as a lock ({error.strerror}); {remedy}") from error
    owner = os.fstat(descriptor).st_uid
    if owner != os.getuid():  # who could keep it locked
        os.close(descriptor)
        raise GpuTurnError(f"{path}: cannot be a lock: it belongs to user {owner}, not to {os.getuid()}; {remedy}")
    return descriptor


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
