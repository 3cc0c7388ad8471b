"""The lease of a run on other storage: lease.json beside its checkpoints. rl.checkpoint.lease.lease decides."""

from __future__ import annotations

from rl.checkpoint.lease.folder import LEASE
from rl.checkpoint.remote import as_remote_error, is_local, open_storage


class RemoteLease:
    """lease.json in <url>/<run>. Few storages can compare and swap: what was written is read again after `settle_s`,
    and the last writer has it.

    Args:
        url: of the folder that holds runs, as in RemoteCheckpoints.
        run: name of the run.
    Raises:
        RemoteError: no such kind of storage, or the package for it is not installed.
    """

    settle_s = 5.0

    def __init__(self, url: str, run: str) -> None:
        self._storage, root = open_storage(url)
        self._folder = f"{root.rstrip('/')}/{run}"
        self._path = f"{self._folder}/{LEASE}"
        self.url = f"{url.rstrip('/')}/{run}/{LEASE}"

    def __str__(self) -> str:
        return self.url

    def read(self) -> bytes | None:
        """The text; None where there is none.

        Raises:
            RemoteError: the remote does not answer.
        """
        with as_remote_error(self.url):
            self._storage.invalidate_cache()
            try:
                return bytes(self._storage.cat_file(self._path))
            except FileNotFoundError:
                return None

    def swap(self, expected: bytes | None, new: bytes | None) -> bool:
        """Put `new` in the place of `expected`; None: no file. False: something else is there.

        Raises:
            RemoteError: the remote does not answer.
        """
        if self.read() != expected:
            return False
        with as_remote_error(self.url):
            if new is None:
                self._remove()
                return True
            self._storage.makedirs(self._folder, exist_ok=True)
            try:
                self._storage.pipe_file(self._path, new, mode="create" if expected is None else "overwrite")
            except FileExistsError:
                return False
        return True

    def _remove(self) -> None:
        if self._storage.exists(self._path):
            self._storage.rm_file(self._path)
        if is_local(self._storage) and not self._storage.ls(self._folder):
            self._storage.rmdir(self._folder)
