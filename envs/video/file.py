"""Opening a stranger's file: what it may be, what may read it, and how it is refused.

A file is opened once, told to be a regular one by its descriptor (a fifo would be waited for, a device read without
end), and read through that descriptor: what was judged is what is decoded, whatever its name points to by then.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import av

BREAKS_OFF = (av.error.FFmpegError, IndexError)  # of reading packets; PyAV, of a stream that came to light on the way
MAX_PICTURE_PIXELS = 2**26  # 8192 x 8192, twice 8K; a header that declares more is taken for damaged
FORMATS = (  # demuxers of moving pictures in one file; playlists, which name other files and hosts, are none
    *("3gp", "apng", "asf", "av1", "avi", "dv", "flv", "gif", "h263", "h264", "hevc", "ivf", "live_flv", "m4v"),
    *("matroska", "matroska,webm", "mjpeg", "mov", "mov,mp4,m4a,3gp,3g2,mj2", "mp4", "mpeg", "mpegts", "mpegvideo"),
    *("mxf", "nut", "obu", "ogg", "rm", "vc1", "vvc", "webm", "wtv", "yuv4mpegpipe"),
)
NO_SUCH = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)  # of a path that leads to no file
SAFELY = {
    "format_whitelist": ",".join(FORMATS),
    "protocol_whitelist": "file",
    "max_pixels": str(MAX_PICTURE_PIXELS),
}


class VideoError(Exception):
    """A video that cannot be used: which one, what is wrong, what to do about it."""

    is_lasting: ClassVar[bool] = False  # the same will come of every other try, as long as the file is the same

    def __init__(self, path: str, problem: str, remedy: str) -> None:
        super().__init__(path, problem, remedy)
        self.path, self.problem, self.remedy = path, problem, remedy

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}; {self.remedy}"


class VideoOpenError(VideoError):
    """There is no such file, it is no regular one, or no demuxer understands it."""

    is_lasting = True


class FileUnavailableError(VideoOpenError):
    """The file is there and cannot be opened just now: a disk fails, it may not be read, somebody writes to it."""

    is_lasting = False


class NoVideoStreamError(VideoError):
    """The file is sound but holds no moving picture."""

    is_lasting = True


class CorruptVideoError(VideoError):
    """The stream is damaged beyond what may be bridged with neighbouring frames."""

    is_lasting = True


class VideoTimeoutError(VideoError):
    """Decoding did not end before its deadline."""


class VideoMemoryError(VideoError):
    """Decoding needs more memory than it may have."""


class DecodingFailedError(VideoError):
    """Decoding broke off in a way that nobody foresaw."""


class FrameRangeError(VideoError):
    """A time was asked for at which the clip shows nothing."""


@dataclass(frozen=True, slots=True)
class FileKey:
    """Which file, and as of when."""

    path: str
    size: int  # bytes
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class RegularFile:
    """An open regular file that is not empty."""

    descriptor: int
    key: FileKey


@contextmanager
def regular_file(path: str, expected: FileKey | None = None) -> Iterator[RegularFile]:
    """Open a file without ever waiting for it.

    Args:
        expected: what it was when it was indexed.
    Raises:
        VideoOpenError: there is none, it is something else than a regular file, it is empty, or it has changed.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a device may do things: not even tried
            raise VideoOpenError(path, "is not a regular file", "give the path of a video file")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        kind = FileUnavailableError if getattr(error, "errno", NO_SUCH[0]) not in NO_SUCH else VideoOpenError
        raise kind(path, f"cannot be opened ({reason})", "check the path and the video root") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise VideoOpenError(path, "is not a regular file", "give the path of a video file")
        if status.st_size == 0:
            raise VideoOpenError(path, "is empty (zero bytes)", "download it again")
        key = FileKey(path, status.st_size, status.st_mtime_ns)
        if expected is not None and key != expected:
            raise FileUnavailableError(path, "changed while it was being read", "try again when nobody writes to it")
        yield RegularFile(descriptor, key)
    finally:
        os.close(descriptor)


@contextmanager
def demuxer(file: RegularFile) -> Iterator[av.container.InputContainer]:
    """Its packets, read by one of FORMATS.

    Raises:
        VideoOpenError: not a video container.
        MemoryError: there was too little for it.
    """
    try:
        container = av.open(f"file:/proc/self/fd/{file.descriptor}", metadata_errors="ignore", options=SAFELY)
    except MemoryError:
        raise  # FFmpeg's own is one, too
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VideoOpenError(file.key.path, f"is not a readable video ({reason})", "replace the file") from error
    with container:
        yield container
