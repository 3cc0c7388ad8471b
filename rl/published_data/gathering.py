"""What a source holds: archives, media, annotation files; brought below the folder of the prepared set.

Loose files are linked (a second name of the same bytes) or, on another disk, copied: the source stays as it is.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from rich.console import Console

from envs.data.rows import DatasetError
from envs.video.suffixes import is_video_name
from rl.published_data.archives import Archive, archives_among
from rl.published_data.catalogue import PublishedSet
from rl.published_data.names import UnsafeName, path_below
from rl.published_data.unpacking import Unpacked, known_unpacked, unpack
from rl.run.console.stages import counted_stage, say

VIDEOS, ANNOTATIONS = "videos", "annotations"  # below the folder of the prepared set
IMAGES = (".jpg", ".jpeg", ".png", ".webp")
MIB = 2**20
_PUBLISHERS = (".cache", ".git", ".hg", "__MACOSX")  # folders that are no data


@dataclass(frozen=True, slots=True)
class Source:
    """The files of a source, by their paths in it."""

    archives: tuple[Archive, ...]
    media: tuple[tuple[str, Path], ...]
    annotations: tuple[tuple[str, Path], ...]


def look_into(source: Path, published: PublishedSet, home: Path, annotation: Path | None) -> Source:
    """What a folder, an archive or an annotation file's folder holds.

    Args:
        home: of the prepared set; what lies in it is not part of the source.
        annotation: the only one to be read; None: those that are called as the authors' are.
    Raises:
        DatasetError: there is no such file or folder, or archives in it cannot be unpacked.
    """
    if not source.exists():
        raise DatasetError(f"{source}: no such file or folder; download the data set, and name where it lies")
    if source.is_file():
        files = [(source.name, source)]
        if not archives_among(files):
            annotation = annotation or source
            files = list(_below(source.parent, home))
    elif source.resolve() == home.resolve():
        raise DatasetError(
            f"{source}: name another folder as --out: what is prepared lies beside its source, not in it"
        )
    else:
        files = list(_below(source, home))
    archives = archives_among(files)
    packed = {file for archive in archives for file in archive.files}
    wanted = [(name, file) for name, file in files if file not in packed]
    named = [(name, file) for name, file in wanted if is_annotation(name, published)]
    if annotation is not None:
        if not annotation.is_file():
            raise DatasetError(f"{annotation}: no such annotation file")
        beside = [(file.name, file) for file in annotation.parent.iterdir() if _is_beside(file.name, published)]
        named = [(annotation.name, annotation), *beside]
    return Source(tuple(archives), tuple(one for one in wanted if is_media(one[0])), tuple(named))


def is_media(name: str) -> bool:
    """Whether a file is called like a video or an image."""
    return is_video_name(name) or name.lower().endswith(IMAGES)


def is_annotation(name: str, published: PublishedSet) -> bool:
    """Whether a file is called like one of the authors' annotation files, or like one that belongs beside it."""
    base = os.path.basename(name)
    patterns = [pattern for split in published.splits for pattern in split.annotations]
    return any(fnmatchcase(base, pattern) for pattern in patterns) or _is_beside(base, published)


def bring(source: Source, published: PublishedSet, home: Path, console: Console) -> list[Unpacked]:
    """Unpack, link or copy everything below `home`; what is there already is left as it is.

    Raises:
        DatasetError: an archive is refused, a name is unsafe, or there is no room on the disk.
    """
    found = [_unpacked(archive, published, home, console) for archive in source.archives]
    loose = [(VIDEOS, *one) for one in source.media] + [(ANNOTATIONS, *one) for one in source.annotations]
    if loose:
        with counted_stage(console, f"linking {len(loose):,} files", len(loose)) as linking:
            for below, name, file in loose:
                _link(file, home / below / _safe(name))
                linking.advance()
    for archive in found:  # annotations that came out of archives
        for file in archive.files:
            if is_annotation(file.path, published):
                _link(home / VIDEOS / file.path, home / ANNOTATIONS / file.path)
    return found


def _unpacked(archive: Archive, published: PublishedSet, home: Path, console: Console) -> Unpacked:
    if (known := known_unpacked(archive, home)) is not None:
        say(console, f"{archive.name}: unpacked before, {len(known.files):,} files")
        return known
    total = max(1, 2 * archive.size // MIB)
    with counted_stage(console, f"unpacking {archive.name}, MiB read", total) as under_way:
        return unpack(
            archive,
            home,
            lambda name: is_media(name) or is_annotation(name, published),
            lambda read: under_way.update(read // MIB),
        )


def _below(folder: Path, home: Path | None = None) -> Iterator[tuple[str, Path]]:
    """Files below a folder, links among files followed (as the hub's cache lays them), links among folders not."""
    left_out = home.resolve() if home else None
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if name not in _PUBLISHERS and (Path(place) / name).resolve() != left_out
        )
        for name in sorted(files):
            path = Path(place) / name
            if path.is_file():
                yield path.relative_to(folder).as_posix(), path


def _is_beside(name: str, published: PublishedSet) -> bool:
    return any(name in split.beside for split in published.splits)


def _safe(name: str) -> str:
    try:
        return path_below(name)
    except UnsafeName as error:
        raise DatasetError(f"the file {error}; rename it") from error


def _link(file: Path, place: Path) -> None:
    """A second name of a file, or a copy where the disk is another."""
    origin = file.resolve()
    if place.exists():
        if place.stat().st_size == origin.stat().st_size:
            return
        place.unlink()  # of an earlier state of the source
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(origin, place)
    except OSError:
        draft = place.with_name(f".{place.name[:200]}.part")
        shutil.copyfile(origin, draft)
        draft.replace(place)


def place_by_name(names: Sequence[str], root: Path) -> int:
    """Give videos the names that rows have for them, where exactly one file seems to be meant; how many were found.

    The file is the one that shares the most parts with the name, from its end; rows without suffix find any.
    """
    by_stem: dict[str, list[str]] = {}
    for path, _ in _below(root):
        by_stem.setdefault(_stem(path), []).append(path)
    placed = 0
    for name in names:
        try:
            wanted = path_below(name)
        except UnsafeName:
            continue
        likely = by_stem.get(_stem(wanted), [])
        same = [path for path in likely if os.path.basename(path) == os.path.basename(wanted)] or likely
        best = max((_shared(path, wanted) for path in same), default=0)
        files = {os.stat(root / path).st_ino: path for path in same if _shared(path, wanted) == best}  # names apart
        if wanted and len(files) == 1:
            (meant,) = files.values()
            suffix = os.path.splitext(meant)[1]
            place = root / (os.path.splitext(wanted)[0] + suffix if is_video_name(wanted) else wanted)
            _link(root / meant, place)
            placed += 1
    return placed


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _shared(path: str, wanted: str) -> int:
    """Folders that two paths have in common, counted from their ends."""
    pairs = zip(reversed(path.split("/")[:-1]), reversed(wanted.split("/")[:-1]), strict=False)
    shared = 0
    for one, other in pairs:
        if one != other:
            break
        shared += 1
    return shared
