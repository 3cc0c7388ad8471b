"""Which clips can be used: each decoded once, whole, and its status kept on disk.

    clip = check_clip(reader, "clip.mp4")             # ok | repaired | quarantined | undecided
    with ClipStatusFile(path) as file:                # what is known; a killed validation goes on from here
        file.append(clip)
    quarantined(path)                                 # what training leaves out: video -> why

A status is of a file as it was, by size and time of change, and of the rules by which clips are read: where one has
changed since, it says nothing. Only what will not change is a reason to leave a clip out: one that met a deadline, a
limit of memory or a disk that could not be read is undecided, stays in the data and is tried again.

Legend: N displayable frames of a clip.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from envs.data.rows import DatasetError
from envs.video.reader import ClipCheck, VideoError, VideoIndex, VideoReader

READ_BYTES = 2**20  # at once, of a file that is only read
RULES = 2  # by which clips are read; 2: one clock and one length. What was found by others is tried again


class ClipStatus(StrEnum):
    """What came of decoding a clip."""

    OK = "ok"
    REPAIRED = "repaired"  # neighbours stand in for some damaged frames
    QUARANTINED = "quarantined"  # cannot be used; the reason says why
    UNDECIDED = "undecided"  # not decoded this time, for a reason that may pass: a deadline, memory, a disk


@dataclass(frozen=True, slots=True)
class CheckedClip:
    """One clip and its status, as it was when it was decoded."""

    video: str  # absolute path
    size: int  # bytes
    mtime_ns: int
    status: ClipStatus
    duration_s: float = 0.0  # 0 where the clip cannot be read
    frames: int = 0  # N
    damaged: int = 0  # frames that neighbours stand in for
    reason: str = ""
    sampled: bool = False  # opened and looked at, not decoded whole
    shown_as: str = ""  # what is done to it before it is shown: turned, pixels made square
    rules: int = RULES

    @property
    def holds(self) -> bool:
        """Whether the file is still the one that was decoded, and clips are still read by the same rules."""
        return self.rules == RULES and _identity(self.video) == (self.size, self.mtime_ns)


def check_clip(reader: VideoReader, path: str, *, sample: bool = False) -> CheckedClip:
    """Decode every frame of a clip, and some again by themselves. What is wrong with it is its status, not an error.

    Args:
        sample: open it, and decode a few frames only.
    """
    size, mtime_ns = _identity(path)
    try:
        clip, checked = _described_and_checked(reader, path, sample)
    except VideoError as error:
        unread = _why_unread(path) if error.is_lasting else ""
        status = ClipStatus.QUARANTINED if error.is_lasting and not unread else ClipStatus.UNDECIDED
        reason = f"{type(error).__name__}: {path}: {unread or error.problem}; {error.remedy}"
        return CheckedClip(path, size, mtime_ns, status, reason=" ".join(reason.split()), sampled=sample)
    status = ClipStatus.REPAIRED if checked.damaged else ClipStatus.OK
    reason = f"{path}: neighbours stand in for {checked.damaged} of {checked.frames} frames" if checked.damaged else ""
    shown_as = "; ".join(clip.shown_as)
    found = (clip.duration_s, clip.num_frames, checked.damaged, reason)
    return CheckedClip(path, size, mtime_ns, status, *found, sampled=sample, shown_as=shown_as)


def quarantined(path: Path) -> dict[str, str]:
    """Videos that a validation found unusable, with the reason; those that have changed since are not among them.

    Raises:
        DatasetError: the file cannot be read, or a line in it is no clip status.
    """
    if not path.is_file():
        return {}
    latest = {clip.video: clip for clip in _checked_clips(_whole_lines(path.read_bytes()), path)}
    return {clip.video: clip.reason for clip in latest.values() if clip.status is ClipStatus.QUARANTINED and clip.holds}


class ClipStatusFile:
    """Checked clips on disk, one JSON line each: what is known, and where to append. One writer at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clips: dict[str, CheckedClip] = {}  # by video, the latest; of earlier validations, those that still hold
        self._file: BinaryIO | None = None

    def __enter__(self) -> ClipStatusFile:
        """Read what is known and decided, and cut off a line that a kill tore.

        Raises:
            DatasetError: another validation writes here, the folder cannot be written, or a line is no clip status.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
        except OSError as error:
            raise DatasetError(f"data.quarantine: {self.path} cannot be written: {error.strerror}") from error
        try:
            _lock(self._file, self.path)
            self._file.seek(0)
            whole = _whole_lines(self._file.read())
            latest = {clip.video: clip for clip in _checked_clips(whole, self.path)}
            self.clips = {
                video: clip for video, clip in latest.items() if clip.holds and clip.status is not ClipStatus.UNDECIDED
            }
            self._file.truncate(len(whole))
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, clip: CheckedClip) -> None:
        """Keep a clip's status: once this returns, killing the process does not lose it."""
        line = json.dumps(asdict(clip), allow_nan=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        self.clips[clip.video] = clip


def _identity(path: str) -> tuple[int, int]:
    """Size and time of change; (-1, -1) of a file that is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _described_and_checked(reader: VideoReader, path: str, sample: bool) -> tuple[VideoIndex, ClipCheck]:
    """What is wrong with a file for good is so twice; a server that failed for a moment is not."""
    try:
        return reader.describe(path), reader.check(path, sample=sample)
    except VideoError as error:
        if not error.is_lasting:
            raise
    return reader.describe(path), reader.check(path, sample=sample)


def _why_unread(path: str) -> str:
    """Why a file cannot be read to its end; empty if it can. What a disk does not give looks like a clip cut off."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return ""
        with open(path, "rb", buffering=0) as file:
            while file.read(READ_BYTES):
                pass
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return ""


def _whole_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]


def _checked_clips(content: bytes, path: Path) -> Iterator[CheckedClip]:
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            yield _require_types(_clip_from(json.loads(line)))
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(
                f"{path}:{number}: no clip status ({error}); delete the line, and the clip is decoded again"
            ) from error


def _clip_from(row: object) -> CheckedClip:
    """One line. Until 0.4.0 what is now undecided was quarantined, but not `lasting`."""
    if not isinstance(row, dict):
        raise TypeError(f"a {type(row).__name__}")
    was_lasting = row.pop("lasting", True)
    status = ClipStatus(row["status"]) if was_lasting else ClipStatus.UNDECIDED
    return CheckedClip(**{"rules": 1} | row | {"status": status})


def _require_types(row: CheckedClip) -> CheckedClip:
    for name, kind in (("video", str), ("reason", str), ("size", int), ("mtime_ns", int), ("duration_s", int | float)):
        if not isinstance(getattr(row, name), kind):
            raise TypeError(f"{name} is {getattr(row, name)!r}")
    return row


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gone with the process, however that ends
    except BlockingIOError as error:
        raise DatasetError(f"{path}: another validation is writing here; let it finish, or end it") from error
