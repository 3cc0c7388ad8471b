"""A prepared set read as a run would read it: rows that can be used, rows that cannot, media found and missing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from envs.benchmarks.registry import resolve
from envs.data.conversation_rows import load_conversations
from envs.data.dataset import load_tasks, load_traces
from envs.data.rows import DatasetError
from envs.video.suffixes import is_video_name
from rl.published_data.catalogue import PublishedSet, Split, Use
from rl.published_data.gathering import ANNOTATIONS, VIDEOS, place_by_name

ROOTS_TRIED = 4  # folders of videos that are tried whole, of those that a sample of names points to
SAMPLE = 200  # of the names that are missing


@dataclass(frozen=True, slots=True)
class ReadFile:
    """One annotation file (or folder of files), read."""

    split: str
    path: Path
    root: Path  # folder of its media
    media: tuple[tuple[str, ...], ...]  # of each usable row, absolute paths
    refused: tuple[tuple[str, str], ...]  # of each other row: where it stands, and why
    missing: tuple[str, ...]  # media that are not there, each once

    @property
    def rows(self) -> int:
        """In the file."""
        return len(self.media) + len(self.refused)


def annotation_files(published: PublishedSet, home: Path) -> list[tuple[Split, list[Path]]]:
    """The annotation files of each split that has any.

    Raises:
        DatasetError: there is none at all, or several where one is to be read.
    """
    there = sorted(path for path in (home / ANNOTATIONS).rglob("*") if path.is_file())
    found = []
    for split in published.splits:
        files = [path for path in there if _fits(path, split)]
        if split.folder:
            files = sorted({path.parent for path in files})
        elif not split.several:
            files = next(
                (some for one in split.annotations if (some := [f for f in files if fnmatchcase(f.name, one)])), []
            )
        if len(files) > 1 and not split.several:
            listed = ", ".join(str(path.relative_to(home / ANNOTATIONS)) for path in files[:5])
            raise DatasetError(
                f"{published.name}: {len(files)} annotation files of split {split.name} in the source ({listed}); say "
                "which one is meant: --annotation FILE"
            )
        if files:
            found.append((split, files))
    if not found:
        expected = ", ".join(pattern for split in published.splits for pattern in split.annotations)
        raise DatasetError(
            f"{published.name}: no annotation file of the authors' in the source; expected is {expected} (of another "
            "name: --annotation FILE)"
        )
    return found


def given_split(published: PublishedSet, annotation: Path) -> Split:
    """The split that a named annotation file is of: by its name, else the first."""
    return next((split for split in published.splits if _fits(annotation, split)), published.splits[0])


def read_file(published: PublishedSet, split: Split, path: Path, home: Path) -> ReadFile:
    """Read an annotation file; media that are not where it says are looked for under their names.

    Raises:
        DatasetError: the file cannot be read as what it is meant to be.
    """
    read = _read(published, split, path, home / VIDEOS)
    for root in _likely_roots(read.missing, home / VIDEOS):
        if not read.missing:
            break
        other = _read(published, split, path, root)
        read = other if len(other.missing) < len(read.missing) else read
    if read.missing and place_by_name(read.missing, read.root):
        read = _read(published, split, path, read.root)
    return read


def _read(published: PublishedSet, split: Split, path: Path, root: Path) -> ReadFile:
    root.mkdir(parents=True, exist_ok=True)
    match published.use:
        case Use.BENCHMARK:
            loaded = resolve(published.name).read(path, root)
            media = [(example.task.video_path,) for example in loaded.examples]
        case Use.TASKS:
            loaded = load_tasks(published.format, path, root)
            media = [(task.video_path,) for task in loaded.tasks]
        case Use.TRACES:
            loaded = load_traces(published.format, path, root)
            media = [(trace.task.video_path,) for trace in loaded.traces]
        case Use.CONVERSATIONS:
            loaded = load_conversations(published.format, path, root)
            media = [tuple(medium.path for medium in read.media) for read in loaded.conversations]
    refused = tuple((f"{path.name}:{row.line}", row.reason) for row in loaded.rejected)
    missing = dict.fromkeys(row.missing for row in loaded.rejected if row.missing)
    return ReadFile(split.name, path, root, tuple(media), refused, tuple(missing))


def _likely_roots(missing: Sequence[str], videos: Path) -> list[Path]:
    """Folders below which many of the missing media lie as their rows name them, or up to two folders deeper."""
    sample = set(missing[:: max(1, len(missing) // SAMPLE)])
    if not sample:
        return []
    tails = {name.rpartition("/")[2] for name in sample}
    stems = {os.path.splitext(tail)[0] for tail in tails}
    votes: Counter[Path] = Counter()
    for place, _, files in os.walk(videos):
        hits = sum(os.path.splitext(name)[0] in stems for name in files if is_video_name(name))
        folder = Path(place)
        for above in (folder, *folder.parents)[:3]:
            if hits and above.is_relative_to(videos) and above != videos:
                votes[above] += hits
    ranked = sorted(votes, key=lambda folder: (-votes[folder], len(folder.parts)))
    return ranked[:ROOTS_TRIED]


def _fits(path: Path, split: Split) -> bool:
    return any(fnmatchcase(path.name, pattern) for pattern in split.annotations)
