"""What tells a whole checkpoint from half of one: a list of its files with sizes and SHA-256, written last.

Whoever reads a manifest may not trust it: names stay inside the folder, sizes are sizes, and nothing is followed out of
the folder by a link. No torch here: files and nothing else.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from rl.trajectory import WrittenFile

MANIFEST = "manifest.json"
FORMAT = 1  # of the manifest
MAX_BYTES = 2**26  # of a manifest: hundreds of thousands of files
LONGEST_NAME = 1024  # characters
BLOCK_BYTES = 2**20
REMEDIES = {
    errno.ENOSPC: "make room, lower trainer.keep_checkpoints, or set output_dir to another disk",
    errno.EDQUOT: "make room, lower trainer.keep_checkpoints, or set output_dir to another disk",
    errno.EROFS: "make it writable, or set output_dir to another folder",
    errno.EACCES: "make it writable, or set output_dir to another folder",
    errno.EPERM: "make it writable, or set output_dir to another folder",
}


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message names the file and, where there is one, the remedy."""


class DamagedError(CheckpointError):
    """A checkpoint's files are not what they should be: another one may still be whole."""


def file_record(folder: Path, path: Path) -> WrittenFile:
    """A file inside `folder`, read once."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return WrittenFile(path.relative_to(folder).as_posix(), path.stat().st_size, digest.hexdigest())


def files_under(folder: Path) -> Iterator[Path]:
    """Every file, in an order that does not depend on the disk."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def complete_records(folder: Path, known: Iterable[WrittenFile]) -> list[WrittenFile]:
    """A record of every file in `folder`; those already known are not read again, but must be there in full.

    Raises:
        DamagedError: a known file is not there, or has another size.
    """
    records = {record.name: record for record in known}
    for name, record in records.items():
        path = folder / name
        if not path.is_file():
            raise DamagedError(
                f"{path}: written by a rank, but not to be seen here; output_dir must lie where every node sees it"
            )
        _require_size(path, record)
    rest = (path for path in files_under(folder) if path.relative_to(folder).as_posix() not in records)
    records |= {record.name: record for record in (file_record(folder, path) for path in rest)}
    return [records[name] for name in sorted(records)]


def manifest_text(files: Iterable[WrittenFile]) -> str:
    """The manifest, as JSON."""
    listed = {file.name: {"bytes": file.num_bytes, "sha256": file.sha256} for file in files}
    return json.dumps({"format": FORMAT, "files": listed}, indent=1)


def parse_manifest(text: str, origin: str) -> list[WrittenFile]:
    """The files a manifest lists.

    Raises:
        DamagedError: it is not a manifest, or names something that cannot be a file of a checkpoint.
    """
    try:
        manifest = json.loads(text)
        if manifest["format"] != FORMAT:
            raise DamagedError(f"{origin}: format {manifest['format']!r:.80}, this version reads {FORMAT}")
        return [_parse_record(name, record, origin) for name, record in manifest["files"].items()]
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise DamagedError(f"{origin}: not a manifest: {error!r:.200}") from error


def read_manifest(folder: Path) -> list[WrittenFile]:
    """The files of the checkpoint in `folder`, as its manifest lists them.

    Raises:
        DamagedError: there is none, or it is not a manifest.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DamagedError(f"{path}: missing, so this is no complete checkpoint")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DamagedError(f"{path}: {path.stat().st_size} bytes are too many for a manifest")
        return parse_manifest(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedError(f"{path}: not a manifest: {error!r:.200}") from error


def require_whole(folder: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        DamagedError: one is missing or altered, or lies elsewhere; says which.
    """
    for expected in read_manifest(folder):
        path = folder / expected.name
        if not path.is_file():
            raise DamagedError(f"{path}: missing, though {MANIFEST} lists it")
        if not path.resolve().is_relative_to(folder.resolve()):
            raise DamagedError(f"{path}: a link out of the checkpoint, which is not followed")
        _require_size(path, expected)
        try:
            found = file_record(folder, path)
        except OSError as error:
            raise DamagedError(f"{path}: not readable: {error}") from error
        if found.sha256 != expected.sha256:
            raise DamagedError(f"{path}: content differs from {MANIFEST}")


def flush_tree(folder: Path) -> None:
    """fsync every file, then every folder from the leaves up: a rename must not overtake the content."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            flush(Path(parent) / name)
        flush(Path(parent))


def flush(path: Path) -> None:
    """fsync a file or folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def explained(error: Exception) -> str:
    """The cause of a failed write or read, in one line, with its remedy where there is one.

    safetensors has no errno to give, only the words "(os error 28)".
    """
    cause = getattr(error, "strerror", None) or str(error)
    where = f"{cause}: {error.filename}" if getattr(error, "filename", None) else cause
    number = re.search(r"\(os error (\d+)\)", where)
    remedy = REMEDIES.get(int(number[1]) if number else getattr(error, "errno", None) or 0)
    return f"{where}; {remedy}" if remedy else where


def _require_size(path: Path, expected: WrittenFile) -> None:
    size = path.stat().st_size
    if size != expected.num_bytes:
        raise DamagedError(f"{path}: {size} bytes, {MANIFEST} says {expected.num_bytes}")


def _parse_record(name: str, record: dict[str, object], origin: str) -> WrittenFile:
    parts = name.split("/")
    if (
        len(name) > LONGEST_NAME
        or any(part in ("", ".", "..") for part in parts)
        or "\\" in name
        or not name.isprintable()
        or ":" in parts[0]
        or name == MANIFEST
    ):
        raise DamagedError(f"{origin}: {name!r:.100} is not a file of a checkpoint")
    size, sha256 = record["bytes"], record["sha256"]
    if type(size) is not int or not 0 <= size < 2**63:
        raise DamagedError(f"{origin}: {name!r:.100} has {size!r:.80} bytes")
    if type(sha256) is not str or not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise DamagedError(f"{origin}: {name!r:.100} has {sha256!r:.80} for a SHA-256")
    return WrittenFile(name, size, sha256)
