"""Checkpoints on other storage: S3, GCS, a mounted folder, memory. The door to fsspec.

    <url>/<run>/checkpoints/
        step_00000020/          as on the disk of the run; without a manifest.json it is not there
        superseded_step_*       a future that the run went back behind
        best                    name of the one with the best score

Storages have no rename that publishes a folder. Files go first and the manifest last; what is replaced or removed loses
its manifest first. Nothing that is read here is trusted: names are confined, sizes and hashes compared
(rl.checkpoint.manifest).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from rl.checkpoint.checkpoint import Checkpoint, checkpoint_name, step_of
from rl.checkpoint.manifest import (
    MANIFEST,
    MAX_BYTES,
    CheckpointError,
    DamagedError,
    flush,
    parse_manifest,
    read_manifest,
)
from rl.checkpoint.pointers import BEST
from rl.checkpoint.store import CHECKPOINTS, CheckpointStore
from rl.trajectory import WrittenFile

STEP = re.compile(r"step_(\d{1,18})")


class RemoteError(CheckpointError):
    """The remote does not answer, or not as it should; names its URL."""


class RemoteCheckpoints:
    """The checkpoints of one run on other storage. One writer at a time.

    Args:
        url: of the folder that holds runs; how to log in is found by fsspec in the environment.
        run: name of the run.
    Raises:
        RemoteError: no such kind of storage, or the package for it is not installed.
    """

    def __init__(self, url: str, run: str) -> None:
        self._fs, root = open_storage(url)
        self._run_folder = f"{root.rstrip('/')}/{run}"
        self._root = f"{self._run_folder}/{CHECKPOINTS}"
        self.url = f"{url.rstrip('/')}/{run}/{CHECKPOINTS}"

    def steps(self) -> list[int]:
        """Steps whose checkpoint is there, newest first; whether one is whole is seen when it is fetched.

        Raises:
            RemoteError: the remote does not answer.
        """
        return sorted((step for step, names in self._listed().items() if MANIFEST in names), reverse=True)

    def best(self) -> int | None:
        """Step of the best one; None if none is known as that."""
        with as_remote_error(self.url):
            path = f"{self._root}/{BEST}"
            if not self._fs.exists(path):
                return None
            named = STEP.fullmatch(self._fs.cat_file(path, end=100).decode(errors="replace").strip())
            return int(named[1]) if named else None

    def upload(self, folder: Path) -> None:
        """Copy a checkpoint of the disk; there from when its manifest is. One that is there already is left alone.

        Raises:
            RemoteError: the remote does not answer or holds something else afterwards; the checkpoint is not there.
            CheckpointError: the checkpoint on the disk cannot be read.
        """
        target, files = f"{self._root}/{checkpoint_name(step_of(folder))}", read_manifest(folder)
        manifest = (folder / MANIFEST).read_bytes()
        with as_remote_error(self.url):
            if self._text_of(f"{target}/{MANIFEST}") == manifest:
                return
            self._remove(target)
            for file in files:
                self._put(folder / file.name, f"{target}/{file.name}")
            for file in files:
                self._require_size(target, file)
            self._put(folder / MANIFEST, f"{target}/{MANIFEST}")

    def fetch(self, step: int, store: CheckpointStore) -> Checkpoint:
        """Bring a checkpoint to the disk, compare it with its manifest, and publish it there.

        Raises:
            DamagedError: it is not what its manifest says.
            CheckpointError: the remote does not answer, or the disk is full.
        """
        source = f"{self._root}/{checkpoint_name(step)}"
        with as_remote_error(self.url):
            text = self._text_of(f"{source}/{MANIFEST}")
            if text is None:
                raise DamagedError(f"{self.url}/{checkpoint_name(step)}: no {MANIFEST}, so it is not there")
            files = parse_manifest(text.decode(errors="replace"), f"{self.url}/{checkpoint_name(step)}/{MANIFEST}")
            for file in files:
                self._require_size(source, file)
        draft = store.begin(step, expected_bytes=sum(file.num_bytes for file in files))
        try:
            for file in files:
                self._get(f"{source}/{file.name}", draft / file.name)
            (draft / MANIFEST).write_bytes(text)
            return store.adopt(draft, step)
        except DamagedError as error:
            raise DamagedError(f"{self.url}/{checkpoint_name(step)}: {str(error).removeprefix(f'{draft}/')}") from error
        except OSError as error:
            raise CheckpointError(f"{draft}: could not be brought from {self.url}: {error}") from error
        finally:
            store.discard(draft)

    def point_to_best(self, step: int) -> None:
        """Let `best` name a checkpoint.

        Raises:
            RemoteError: the remote does not answer.
        """
        with as_remote_error(self.url):
            self._fs.pipe_file(f"{self._root}/{BEST}", f"{checkpoint_name(step)}\n".encode())

    def prune(self, kept: Collection[int]) -> None:
        """Remove the checkpoints of all other steps, and what an interrupted copy left.

        Raises:
            RemoteError: the remote does not answer.
        """
        with as_remote_error(self.url):
            for step, names in self._listed().items():
                if step not in kept or MANIFEST not in names:
                    self._remove(f"{self._root}/{checkpoint_name(step)}")

    def set_aside_after(self, step: int) -> None:
        """Later steps belong to a future that the run went back behind.

        Raises:
            RemoteError: the remote does not answer.
        """
        with as_remote_error(self.url):
            for later in (later for later in self._listed() if later > step):
                name = checkpoint_name(later)
                self._move(f"{self._root}/{name}", f"{self._root}/superseded_{name}")

    def set_aside_all(self) -> str:
        """Make room for a run that starts afresh; returns where what was there lies now, "" if nothing was.

        Raises:
            RemoteError: the remote does not answer.
        """
        with as_remote_error(self.url):
            self._fs.invalidate_cache()
            if not self._fs.exists(self._root):
                return ""
            aside = f"{self._run_folder}.{time.strftime('%Y%m%d-%H%M%S')}/{CHECKPOINTS}"
            self._move(self._root, aside)
            return str(self._fs.unstrip_protocol(aside))

    def _listed(self) -> dict[int, set[str]]:
        """Names of the files of every step's folder."""
        with as_remote_error(self.url):
            self._fs.invalidate_cache()
            found: dict[int, set[str]] = {}
            for path in self._fs.find(self._root):
                folder, _, name = path.removeprefix(f"{self._root}/").partition("/")
                if (step := STEP.fullmatch(folder)) and checkpoint_name(int(step[1])) == folder:
                    found.setdefault(int(step[1]), set()).add(name)
            return found

    def _text_of(self, path: str) -> bytes | None:
        """A manifest; None if there is none."""
        self._fs.invalidate_cache()
        if not self._fs.exists(path):
            return None
        if (size := self._fs.info(path)["size"]) > MAX_BYTES:
            raise DamagedError(f"{path}: {size} bytes are too many for a manifest")
        return bytes(self._fs.cat_file(path))

    def _require_size(self, folder: str, file: WrittenFile) -> None:
        path = f"{folder}/{file.name}"
        if self._leads_out(folder, path):
            raise DamagedError(f"{path}: a link out of the checkpoint, which is not followed")
        try:
            size = self._fs.info(path)["size"]
        except FileNotFoundError as error:
            raise DamagedError(f"{path}: missing, though {MANIFEST} lists it") from error
        if size != file.num_bytes:
            raise DamagedError(f"{path}: {size} bytes, {MANIFEST} says {file.num_bytes}")

    def _leads_out(self, folder: str, path: str) -> bool:
        """Only folders of this machine have links."""
        if not is_local(self._fs):
            return False
        return not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))

    def _put(self, source: Path, path: str) -> None:
        """A file is there in full or not at all: storages see to it themselves, folders of this machine do not."""
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        if not is_local(self._fs):
            self._fs.put_file(str(source), path)
            return
        self._fs.put_file(str(source), f"{path}.part")
        flush(Path(f"{path}.part"))
        self._fs.mv(f"{path}.part", path)

    def _get(self, path: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with as_remote_error(self.url):
            self._fs.get_file(path, str(target))

    def _remove(self, folder: str) -> None:
        """A checkpoint's folder, its manifest first; and nothing if it is not there."""
        self._fs.invalidate_cache()
        if self._fs.exists(f"{folder}/{MANIFEST}"):
            self._fs.rm_file(f"{folder}/{MANIFEST}")
        if self._fs.exists(folder):
            self._fs.rm(folder, recursive=True)

    def _move(self, source: str, target: str) -> None:
        """Every manifest first: half of a folder is not there under either name."""
        paths = sorted(self._fs.find(source), key=lambda path: (path.rpartition("/")[2] != MANIFEST, path))
        for path in paths:
            moved = target + path.removeprefix(source)
            self._fs.makedirs(moved.rpartition("/")[0], exist_ok=True)
            self._fs.mv(path, moved)
        if self._fs.exists(source):
            self._fs.rm(source, recursive=True)


def open_storage(url: str) -> tuple[AbstractFileSystem, str]:
    """The storage of a URL, and the path in it.

    Raises:
        RemoteError: no such kind of storage, or the package for it is not installed.
    """
    with as_remote_error(url):
        return url_to_fs(url)


def is_local(storage: AbstractFileSystem) -> bool:
    """Whether it is a folder of this machine: with links, with empty folders, and without atomic writes."""
    return isinstance(storage, LocalFileSystem)


@contextmanager
def as_remote_error(url: str) -> Iterator[None]:
    """Turn what a storage raises into a RemoteError: each kind has errors of its own, so they cannot be listed."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        cause: Any = " ".join(str(error).split()) or type(error).__name__
        raise RemoteError(f"{url}: {type(error).__name__}: {cause}") from error
