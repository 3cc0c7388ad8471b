"""`dynframe prepare`: a downloaded data set made a checked folder, its counts beside the authors' numbers.

    OUT/annotations/…   the authors' annotation files          OUT/clips.jsonl     the status of every video
    OUT/videos/…        media, under the names that rows have  OUT/unpacked/…      what came out of which archive
    OUT/NAME.yaml       to be given to the next command        OUT/manifest.json   all of this, with digests

Each step knows what is there: given again, the command goes on where it was stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from envs.data.clip_status import CheckedClip, ClipStatus, ClipStatusFile
from envs.video.suffixes import is_video_name
from rl import __version__
from rl.config.data import VideoConfig
from rl.config.errors import ConfigError, require_one_of
from rl.published_data.catalogue import PublishedSet, Split, known_set
from rl.published_data.gathering import ANNOTATIONS, bring, look_into
from rl.published_data.reading import ReadFile, annotation_files, given_split, read_file
from rl.published_data.unpacking import Unpacked, write_json
from rl.published_data.usage import write_usage
from rl.run.console.stages import say
from rl.run.prepare.clips import checked_clips, is_known
from rl.run.prepare.errors import as_config_error

CHECKS = ("sample", "whole", "none")  # of videos: a few frames, all of them, nothing
MANIFEST, CLIPS = "manifest.json", "clips.jsonl"


@dataclass(frozen=True, slots=True)
class SplitCount:
    """A split, counted."""

    split: str
    files: tuple[str, ...]  # paths in the prepared folder
    rows: int
    usable: int  # rows that a run would use
    authors_rows: int | None
    rows_source: str
    media: int  # named by rows, each once
    found: int
    missing: int
    undecodable: int
    undecided: int  # not decoded this time, for a reason that may pass
    authors_videos: int | None
    videos_source: str

    @property
    def share(self) -> float:
        """Of the authors' rows that are usable; of the file's rows where the authors' number is not published."""
        expected = self.authors_rows or self.rows
        return min(1.0, self.usable / expected) if expected else 0.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """What came of a preparation."""

    published: PublishedSet
    home: Path
    splits: tuple[SplitCount, ...]
    problems: tuple[tuple[str, str], ...]  # where, and what is wrong: rows and media that cannot be used
    commands: tuple[str, ...]  # what to do next
    usable: bool


@as_config_error()
def prepare(
    name: str,
    source: Path,
    home: Path,
    console: Console,
    *,
    annotation: Path | None = None,
    check: str = "sample",
    workers: int = 0,
    at_least: float = 1.0,
) -> Prepared:
    """Prepare a published data set.

    Args:
        source: a folder, an archive, or an annotation file with its media beside it.
        home: the folder that is made, and gone on with where it is there.
        annotation: the annotation file, where it is not called as the authors' is.
        check: one of CHECKS.
        workers: decoding processes; 0: one per core.
        at_least: the share of rows from which every split counts as usable.
    Raises:
        ConfigError: no such set or source, an archive is refused, or an annotation file cannot be read.
    """
    require_one_of("--check", check, CHECKS)
    try:
        published = known_set(name)
    except KeyError as error:
        raise ConfigError(error.args[0]) from error
    unpacked = bring(look_into(source, published, home, annotation), published, home, console)
    if annotation is None:
        splits = annotation_files(published, home)
    else:
        splits = [(given_split(published, annotation), [home / ANNOTATIONS / annotation.name])]
    read = []
    for split, files in splits:
        for file in files:
            say(console, f"reading {file.relative_to(home)}")
            read.append((split, read_file(published, split, file, home)))
    clips = _checked(read, home, console, check, workers)
    counts = tuple(_count(split, [one for of, one in read if of is split], clips, home) for split, _ in splits)
    commands = write_usage(published, home, [one for _, one in read], home / CLIPS if check != "none" else None)
    is_usable = all(count.share >= at_least and count.usable for count in counts)
    made = Prepared(published, home, counts, tuple(_problems(read, clips)), tuple(commands), is_usable)
    write_json(home / MANIFEST, _manifest(made, read, unpacked))
    return made


def _checked(
    read: Sequence[tuple[Split, ReadFile]], home: Path, console: Console, check: str, workers: int
) -> dict[str, CheckedClip]:
    """The status of every video that a row names; of none where nothing is to be checked."""
    if check == "none":
        return {}
    videos = sorted({path for _, one in read for media in one.media for path in media if is_video_name(path)})
    sample = check == "sample"
    with ClipStatusFile(home / CLIPS) as file:
        new = [video for video in videos if not is_known(file.clips.get(video), sample)]
        if len(new) < len(videos):
            say(console, f"{len(videos) - len(new):,} videos were checked before")
        for clip in checked_clips(new, VideoConfig(), console, workers=workers, sample=sample) if new else ():
            file.append(clip)
        return {video: file.clips[video] for video in videos}


def _count(split: Split, files: Sequence[ReadFile], clips: dict[str, CheckedClip], home: Path) -> SplitCount:
    found = {path for one in files for media in one.media for path in media}
    missing = {name for one in files for name in one.missing}
    bad = {path for path in found if path in clips and clips[path].status is ClipStatus.QUARANTINED}
    undecided = {path for path in found if path in clips and clips[path].status is ClipStatus.UNDECIDED}
    return SplitCount(
        split=split.name,
        files=tuple(one.path.relative_to(home).as_posix() for one in files),
        rows=sum(one.rows for one in files),
        usable=sum(bad.isdisjoint(media) for one in files for media in one.media),
        authors_rows=split.rows.count,
        rows_source=split.rows.source,
        media=len(found) + len(missing),
        found=len(found),
        missing=len(missing),
        undecodable=len(bad),
        undecided=len(undecided),
        authors_videos=split.videos.count,
        videos_source=split.videos.source,
    )


def _problems(read: Sequence[tuple[Split, ReadFile]], clips: dict[str, CheckedClip]) -> Iterator[tuple[str, str]]:
    for _, one in read:
        yield from one.refused
    for clip in clips.values():
        if clip.status in (ClipStatus.QUARANTINED, ClipStatus.UNDECIDED):
            yield clip.status.value, clip.reason


def _manifest(made: Prepared, read: Sequence[tuple[Split, ReadFile]], unpacked: Sequence[Unpacked]) -> dict[str, Any]:
    """What was prepared from what. Paths are relative to the folder: it may be moved."""
    files = sorted({file for _, one in read for file in _files(one.path)})
    return {
        "data_set": made.published.name,
        "title": made.published.title,
        "dynframe": __version__,
        "usable": made.usable,
        "splits": [{**asdict(count), "share": count.share} for count in made.splits],
        "annotations": [
            {"path": file.relative_to(made.home).as_posix(), "bytes": file.stat().st_size, "sha256": _sha256(file)}
            for file in files
        ],
        "archives": [
            {
                "name": one.name,
                "bytes": one.bytes,
                "sha256": one.sha256,
                "files": len(one.files),
                "skipped": one.skipped,
            }
            for one in unpacked
        ],
        "media_roots": sorted({one.root.relative_to(made.home).as_posix() for _, one in read}),
        "problems": len(made.problems),
        "next": list(made.commands),
    }


def _of_archive(one: Unpacked) -> dict[str, Any]:
    return {key: getattr(one, key) for key in ("name", "bytes", "sha256", "skipped")}


def _files(path: Path) -> list[Path]:
    """An annotation file with what lies beside it; the files of a folder."""
    return sorted(one for one in (path if path.is_dir() else path.parent).iterdir() if one.is_file())


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
