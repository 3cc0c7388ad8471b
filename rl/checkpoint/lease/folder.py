"""The lease of a run's folder on the disk: lease.json. Files only; rl.checkpoint.lease.lease decides."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LEASE = "lease.json"
SETTLE_S = 2.0  # on a network file system without locks
LOCK_TIMEOUT_S = 10.0  # a lock is held for the time of a few system calls
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL)  # EBADF: NFS, for a folder


class FolderLease:
    """lease.json of a folder, which is made for it, and removed with it if nothing else lies there.

    A lock on the folder makes swaps exclude each other; where there are no locks, creating does, and a replacement is
    looked at again after `settle_s`.
    """

    def __init__(self, folder: Path, sleep: Callable[[float], None] = time.sleep) -> None:
        self.folder, self.path = folder, folder / LEASE
        self.settle_s = 0.0
        self._sleep = sleep

    def __str__(self) -> str:
        return str(self.path)

    def read(self) -> bytes | None:
        """The text; None where there is none."""
        try:
            return self.path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def swap(self, expected: bytes | None, new: bytes | None) -> bool:
        """Put `new` in the place of `expected`; None: no file. False: something else is there.

        Raises:
            OSError: the folder cannot be written.
        """
        if expected is None:
            self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with self._locked():
                return self.read() == expected and self._put(expected, new)
        except FileNotFoundError:  # the folder has gone
            return False

    def move_contents(self, target: Path, expected: bytes, new: bytes) -> bool:
        """Rename the folder, and put a new one with the lease `new` in its place; False: another process has it."""
        try:
            with self._locked():
                if self.read() != expected:
                    return False
                self.folder.rename(target)
        except FileNotFoundError:
            return False
        (target / LEASE).unlink()
        return self.swap(None, new)

    def _put(self, expected: bytes | None, new: bytes | None) -> bool:
        if new is None:
            self.path.unlink(missing_ok=True)
            with suppress(OSError):  # not empty
                self.folder.rmdir()
            return True
        if expected is None:
            return self._create(new)
        draft = self.path.with_name(f".{LEASE}.{os.getpid()}")
        try:
            draft.write_bytes(new)
            draft.replace(self.path)
        finally:
            draft.unlink(missing_ok=True)
        return True

    def _create(self, text: bytes) -> bool:
        try:
            with self.path.open("xb") as file:
                file.write(text)
        except FileExistsError:
            return False
        except OSError:
            self.path.unlink(missing_ok=True)  # a full disk leaves an empty one
            raise
        return True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time.

        Raises:
            FileNotFoundError: there is no such folder.
            TimeoutError: another process does not give the lock back.
        """
        while True:
            handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                self._lock(handle)
                if os.path.samestat(os.fstat(handle), os.stat(self.folder)):  # not one that was moved or removed
                    yield
                    return
            finally:
                os.close(handle)  # and the lock is gone

    def _lock(self, handle: int) -> None:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{self.folder}: locked for {LOCK_TIMEOUT_S:g} s by another process") from error
                self._sleep(0.01)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                self.settle_s = SETTLE_S
                return None
