"""Which clips can be used: each decoded once, whole, and its status kept on disk.

    clip = check_clip(reader, "clip.mp4")             # ok | repaired | quarantined
    with ClipStatusFile(path) as file:                # what is known; a killed validation goes on from here
        file.append(clip)
    quarantined(path)                                 # what training leaves out: video -> why

A status is of a file as it was, by size and time of change: a clip that has changed since has none.

Legend: N displayable frames of a clip.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from envs.data.rows import DatasetError
from envs.video.reader import (
    DecoderDiedError,
    DecodingFailedError,
    VideoError,
    VideoMemoryError,
    VideoReader,
    VideoTimeoutError,
)

STRETCH = 1024  # frames of one request: bounds memory, and what one deadline covers
PASSING = (VideoTimeoutError, VideoMemoryError, DecoderDiedError, DecodingFailedError)  # may end otherwise next time
SMALL_HW = (28, 28)  # pixels: decoding is what is tried, not scaling


class ClipStatus(StrEnum):
    """What came of decoding a clip."""

    OK = "ok"
    REPAIRED = "repaired"  # neighbours stand in for some damaged frames
    QUARANTINED = "quarantined"  # cannot be used; the reason says why


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
    lasting: bool = True  # False: another try may end otherwise (a deadline, memory, a process that was killed)

    @property
    def holds(self) -> bool:
        """Whether the file is still the one that was decoded."""
        return _identity(self.video) == (self.size, self.mtime_ns)


def check_clip(reader: VideoReader, path: str) -> CheckedClip:
    """Decode every frame of a clip, in stretches. Whatever is wrong with it is its status, not an error."""
    size, mtime_ns = _identity(path)
    try:
        clip = reader.describe(path)
        times_s_N, damaged = clip.times_s_N.tolist(), 0
        for first in range(0, clip.num_frames, STRETCH):
            *_, bad = reader.frames(path, times_s_N[first : first + STRETCH], SMALL_HW)
            damaged += bad
    except VideoError as error:
        reason = f"{type(error).__name__}: {error.problem}; {error.remedy}"
        lasting = not isinstance(error, PASSING)
        return CheckedClip(
            path, size, mtime_ns, ClipStatus.QUARANTINED, reason=" ".join(reason.split()), lasting=lasting
        )
    status = ClipStatus.REPAIRED if damaged else ClipStatus.OK
    reason = f"neighbours stand in for {damaged} of {clip.num_frames} frames" if damaged else ""
    return CheckedClip(path, size, mtime_ns, status, clip.duration_s, clip.num_frames, damaged, reason)


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
        """Read what is known, and cut off a line that a kill tore.

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
            self.clips = {video: clip for video, clip in latest.items() if clip.holds and clip.lasting}
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


def _whole_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]


def _checked_clips(content: bytes, path: Path) -> Iterator[CheckedClip]:
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            row = json.loads(line)
            yield _require_types(CheckedClip(**row | {"status": ClipStatus(row["status"])}))
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(
                f"{path}:{number}: no clip status ({error}); delete the line, and the clip is decoded again"
            ) from error


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
