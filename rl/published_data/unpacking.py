"""Archives unpacked below a folder: whole or not at all, once, and going on where it was stopped.

    OUT/videos/ARCHIVE/…            its members that are wanted
    OUT/unpacked/ARCHIVE.json       what it was (bytes, time of change, SHA-256) and every file of it with its own

Files are written into a draft beside that, and moved into place once the whole archive has been read: what is refused
leaves nothing. A draft that was stopped is gone on with; of its files those that are whole are not written again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from envs.data.rows import DatasetError, shortened
from rl.published_data.archives import Advance, Archive, Member, RefusedArchive, members, reading, refused, sha256_of

RESERVE = 2**30  # bytes of the disk that are left free
PIECE = 2**20
DRAFT = ".part"
_SUFFIXES = re.compile(r"\.(zip|tar|tgz|tbz2|txz|tar\.\w+)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class UnpackedFile:
    """A file that came out of an archive."""

    path: str  # relative to the folder of videos
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What an archive was, and what came out of it."""

    name: str
    bytes: int
    mtime_ns: int
    sha256: str
    files: tuple[UnpackedFile, ...]
    skipped: int  # members that are neither media nor annotations


def known_unpacked(archive: Archive, home: Path) -> Unpacked | None:
    """What is known of an archive that was unpacked before and has not changed since; None: unpack it."""
    record = _record(archive, home)
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        files = tuple(UnpackedFile(**file) for file in found.pop("files"))
        known = Unpacked(**found, files=files)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    is_same = (known.name, known.bytes, known.mtime_ns) == (archive.name, archive.size, _mtime_ns(archive))
    there = all(_has_size(home / "videos" / file.path, file.bytes) for file in known.files)
    return known if is_same and there else None


def unpack(archive: Archive, home: Path, wanted: Callable[[str], bool], advance: Advance) -> Unpacked:
    """Unpack the members that are wanted.

    Args:
        home: of the prepared set; files go below `videos/`, into a folder of the archive's name.
        advance: takes the bytes of the archive that have been read, out of twice its size: once for its digest.
    Raises:
        RefusedArchive: see `rl.published_data.archives`.
        DatasetError: there is no room on the disk.
    """
    below = _SUFFIXES.sub("", archive.name)
    state = f"{archive.name}/{archive.size}/{_mtime_ns(archive)}"  # a draft of another state is not gone on with
    draft, place = home / f".unpacking-{_short(state)}", home / "videos" / below
    draft.mkdir(parents=True, exist_ok=True)
    digest, size = sha256_of(archive, advance), archive.size
    files, skipped = [], 0
    try:
        for member in members(archive, lambda read: advance(size + read)):
            if not wanted(member.name):
                skipped += 1
                continue
            _require_room(archive, member, draft)
            files.append(UnpackedFile(f"{below}/{member.name}", member.size, _write(archive, member, draft)))
    except RefusedArchive:
        shutil.rmtree(draft)
        raise
    except OSError as error:
        raise NoRoom(f"{archive.name}: {draft}: {error.strerror}; give the command again to go on") from error
    if place.exists():
        shutil.rmtree(place)  # of an earlier state of the archive
    place.parent.mkdir(parents=True, exist_ok=True)
    draft.rename(place)
    made = Unpacked(archive.name, size, _mtime_ns(archive), digest, tuple(files), skipped)
    write_json(_record(archive, home), asdict(made))
    return made


class NoRoom(DatasetError):
    """The disk is too small; what is unpacked already is kept for another try."""


def write_json(path: Path, content: Any) -> None:
    """Published by a rename: whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.replace(path)


def _write(archive: Archive, member: Member, draft: Path) -> str:
    """The member as a file of its own, unless it is there; its SHA-256."""
    path = draft / member.name
    digest = hashlib.sha256()
    if _has_size(path, member.size):  # whole files alone have their names
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                digest.update(piece)
        return digest.hexdigest()
    path.parent.mkdir(parents=True, exist_ok=True)
    part, written = path.with_name(f"{path.name[:200]}{DRAFT}"), 0
    with part.open("wb") as file:
        for piece in _pieces(archive, member):
            written += len(piece)
            if written > member.size:
                raise refused(archive, f"{shortened(member.name)} is larger than the {member.size:,} bytes it declares")
            digest.update(piece)
            file.write(piece)
    if written < member.size:
        raise refused(archive, f"{shortened(member.name)} breaks off after {written:,} of {member.size:,} bytes")
    part.rename(path)
    return digest.hexdigest()


def _pieces(archive: Archive, member: Member) -> Iterator[bytes]:
    with reading(archive), member.opened() as opened:
        while piece := opened.read(PIECE):
            yield piece


def _require_room(archive: Archive, member: Member, draft: Path) -> None:
    free = shutil.disk_usage(draft).free - RESERVE
    if member.size > free:
        raise NoRoom(
            f"{archive.name}: {shortened(member.name)} takes {member.size:,} bytes, and {max(free, 0):,} are left on "
            f"the disk of {draft.parent} beside a reserve of 1 GiB; name another --out, or make room: it goes on here"
        )


def _record(archive: Archive, home: Path) -> Path:
    return home / "unpacked" / f"{archive.name.replace('/', '_')[:150]}-{_short(archive.name)}.json"


def _short(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:12]


def _mtime_ns(archive: Archive) -> int:
    return max(file.stat().st_mtime_ns for file in archive.files)


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False
