"""The members of an archive (zip; tar, packed or in parts), one after the other, each with a name that was judged.

Refused, by the member's name: what lies outside, links, devices, names twice, encrypted and absurdly packed data. Sizes
are those that the archive declares; whoever reads a member holds it to that.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import IO

from envs.data.rows import DatasetError, shortened
from rl.published_data.names import UnsafeName, path_below

MOST_MEMBERS = 5_000_000
MOST_PACKED = 1_000  # times: deflate reaches 1,032 on zeros, video and text do not
UNJUDGED = 64 * 2**20  # bytes that a small archive may always unpack to
_TAR = re.compile(r"\.(tar|tar\.gz|tgz|tar\.bz2|tbz2|tar\.xz|txz)$", re.IGNORECASE)
_PART = re.compile(r"(?P<whole>.+\.(?:tar|tar\.gz|tgz))\.(?:part[._-]?)?(?P<place>[a-z]{2}|\d{2,3})$", re.IGNORECASE)
_ZIP_PART = re.compile(r"\.(z\d\d|zip\.\d{2,3}|zip\.part.*)$", re.IGNORECASE)
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, ValueError)

Advance = Callable[[int], None]  # bytes of the archive that have been read so far


class RefusedArchive(DatasetError):
    """An archive that is not unpacked; the message names it, the member and the reason."""


@dataclass(frozen=True, slots=True)
class Archive:
    """One archive, in one file or in several that belong together."""

    name: str  # path in the source, of the whole
    files: tuple[Path, ...]

    @property
    def size(self) -> int:
        """Bytes, packed."""
        return sum(file.stat().st_size for file in self.files)


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in an archive."""

    name: str  # a relative path
    size: int  # bytes, as declared
    opened: Callable[[], IO[bytes]]


def archives_among(files: Sequence[tuple[str, Path]]) -> list[Archive]:
    """The archives among files, parts of one put together.

    Args:
        files: (path in the source, file).
    Raises:
        RefusedArchive: a part is missing, or the archive is a zip in parts.
    """
    parts: dict[str, dict[str, Path]] = {}
    found = []
    for name, file in sorted(files):
        if name.lower().endswith(".zip") or _TAR.search(name):
            found.append(Archive(name, (file,)))
        elif part := _PART.fullmatch(name):
            parts.setdefault(part["whole"], {})[part["place"].lower()] = file
        elif _ZIP_PART.search(name):
            raise RefusedArchive(f"{name}: a zip in parts; join it first: zip -s 0 FIRST.zip --out whole.zip")
    for whole, by_place in parts.items():
        places = sorted(by_place)
        for place, follower in itertools.pairwise(places):
            if _after(place) != follower:
                raise RefusedArchive(f"{whole}: its part {_after(place)!r} is missing (there are {', '.join(places)})")
        found.append(Archive(whole, tuple(by_place[place] for place in places)))
    return sorted(found, key=lambda archive: archive.name)


def members(archive: Archive, advance: Advance) -> Iterator[Member]:
    """Its regular files; read each before the next is asked for.

    Raises:
        RefusedArchive: as this file says, or the archive is damaged.
    """
    reader = _zip_members if archive.name.lower().endswith(".zip") else _tar_members
    seen: set[str] = set()
    with reading(archive):
        for member in reader(archive, advance):
            if member.name in seen:
                raise refused(archive, f"{shortened(member.name)} stands twice in it")
            seen.add(member.name)
            if len(seen) > MOST_MEMBERS:
                raise refused(archive, f"more than {MOST_MEMBERS:,} files")
            yield member


@contextmanager
def reading(archive: Archive) -> Iterator[None]:
    """What an archive raises while it is read, as its refusal."""
    try:
        yield
    except DatasetError:
        raise
    except UnsafeName as error:
        raise refused(archive, str(error)) from error
    except DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:  # a disk, not the archive
            raise DatasetError(f"{archive.name}: {error.strerror}") from error
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise RefusedArchive(f"{archive.name}: damaged ({reason}); download it again") from error


def refused(archive: Archive, reason: str) -> RefusedArchive:
    """That an archive is not unpacked, and why."""
    return RefusedArchive(f"{archive.name}: not unpacked: {reason}")


def sha256_of(archive: Archive, advance: Advance) -> str:
    """Of its files, one after the other."""
    digest, read = hashlib.sha256(), 0
    for file in archive.files:
        with file.open("rb") as opened:
            while piece := opened.read(2**20):
                digest.update(piece)
                advance(read := read + len(piece))
    return digest.hexdigest()


def _after(place: str) -> str:
    if place.isdigit():
        return f"{int(place) + 1:0{len(place)}}"
    number = (ord(place[0]) - 97) * 26 + ord(place[1]) - 97 + 1
    return f"{chr(97 + number // 26)}{chr(97 + number % 26)}"


def _zip_members(archive: Archive, advance: Advance) -> Iterator[Member]:
    """All names and sizes are judged before the first member is given."""
    packed = archive.size
    with zipfile.ZipFile(archive.files[0]) as opened:
        infos = [info for info in opened.infolist() if not info.is_dir()]
        named = [(path_below(info.filename), info) for info in infos]
        for name, info in named:
            _judge_zip(archive, name, info)
        if (total := sum(info.file_size for info in infos)) > MOST_PACKED * packed + UNJUDGED:
            raise refused(archive, f"{packed:,} bytes that would unpack to {total:,}")
        for name, info in named:
            yield Member(name, info.file_size, lambda info=info: opened.open(info))
            advance(min(packed, info.header_offset + info.compress_size))


def _judge_zip(archive: Archive, name: str, info: zipfile.ZipInfo) -> None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise refused(archive, f"{shortened(name)} is {'a link' if kind == stat.S_IFLNK else 'no regular file'}")
    if info.flag_bits & 1:
        raise refused(archive, f"{shortened(name)} is encrypted; unpack it by hand, and give the folder")
    if info.file_size > MOST_PACKED * info.compress_size + UNJUDGED:
        raise refused(
            archive, f"{shortened(name)}: {info.compress_size:,} bytes that would unpack to {info.file_size:,}"
        )


def _tar_members(archive: Archive, advance: Advance) -> Iterator[Member]:
    joined, unpacked = _Joined(archive.files, advance), 0
    with joined, tarfile.open(fileobj=joined, mode="r|*") as opened:
        for info in opened:
            name = path_below(info.name)
            if info.isdir():
                continue
            if not info.isreg():
                kind = "a link" if info.issym() or info.islnk() else "no regular file"
                raise refused(archive, f"{shortened(name)} is {kind}")
            unpacked += info.size
            if info.issparse() or unpacked > MOST_PACKED * archive.size + UNJUDGED:
                raise refused(archive, f"{shortened(name)} of {info.size:,} bytes, in an archive of {archive.size:,}")
            yield Member(name, info.size, lambda info=info: opened.extractfile(info))


class _Joined(RawIOBase):
    """Files one after the other, as one that is only read forward."""

    def __init__(self, files: Sequence[Path], advance: Advance) -> None:
        self._left, self._open, self._read, self._advance = list(files), None, 0, advance

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while True:
            if self._open is None:
                if not self._left:
                    return 0
                self._open = self._left.pop(0).open("rb")
            if count := self._open.readinto(buffer):
                self._read += count
                self._advance(self._read)
                return count
            self._open.close()
            self._open = None

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
        super().close()
