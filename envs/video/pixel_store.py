"""Frames of one clip kept by their numbers: in memory, or in a file that vanishes with whoever holds it.

Legend: H W pixels · C colours (RGB).
"""

from __future__ import annotations

import os
import tempfile
import threading
from dataclasses import dataclass, field
from typing import BinaryIO

import av
import numpy as np

from envs.video.packets import picture_bytes

FREE_SHARE = 0.5  # of what is free on a disk, that may be taken: others write there, too


@dataclass(frozen=True, slots=True, eq=False)
class KeptFrame:
    """What is shown for a frame: a picture as decoded, or RGB pixels of one size."""

    shown: int  # number of the picture: the frame's own unless that is damaged
    picture: av.VideoFrame | np.ndarray
    is_damaged: bool

    @property
    def num_bytes(self) -> int:
        """Of memory."""
        return self.picture.nbytes if isinstance(self.picture, np.ndarray) else picture_bytes(self.picture)


@dataclass(slots=True)
class MemoryStore:
    """Frames in memory."""

    num_bytes: int = 0
    _frames: dict[int, KeptFrame] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __contains__(self, number: int) -> bool:
        return number in self._frames

    def put(self, number: int, frame: KeptFrame) -> None:
        """Keep a frame that is not kept yet."""
        with self._lock:
            if number not in self._frames:
                self._frames[number] = frame
                self.num_bytes += frame.num_bytes

    def get(self, number: int) -> KeptFrame:
        """A frame that is kept."""
        return self._frames[number]


class DiskStore:
    """RGB pixels of one size in a file without a name, in the folder for temporary files (TMPDIR)."""

    def __init__(self, size_HW: tuple[int, int]) -> None:
        """
        Raises:
            OSError: there is no folder that can be written.
        """
        self._shape_HWC = (*size_HW, 3)
        self._file: BinaryIO = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - open as long as this is
        self._frames: dict[int, tuple[int, int, bool]] = {}  # number -> slot in the file, number shown, is damaged
        self._slots = 0
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """Of the file."""
        return self._slots * int(np.prod(self._shape_HWC))

    def __contains__(self, number: int) -> bool:
        return number in self._frames

    def put(self, number: int, frame: KeptFrame) -> None:
        """Keep a frame that is not kept yet.

        Raises:
            OSError: the disk is full.
        """
        with self._lock:
            if number in self._frames:
                return
            pixels = memoryview(np.ascontiguousarray(frame.picture)).cast("B")
            offset = self._slots * pixels.nbytes
            written = 0
            while written < pixels.nbytes:
                written += os.pwrite(self._file.fileno(), pixels[written:], offset + written)
            self._frames[number] = self._slots, frame.shown, frame.is_damaged
            self._slots += 1

    def get(self, number: int) -> KeptFrame:
        """A frame that is kept.

        Raises:
            OSError: the disk cannot be read.
        """
        slot, shown, is_damaged = self._frames[number]
        pixels_HWC = np.empty(self._shape_HWC, dtype=np.uint8)
        to_fill, filled = memoryview(pixels_HWC).cast("B"), 0
        while filled < pixels_HWC.nbytes:
            read = os.preadv(self._file.fileno(), [to_fill[filled:]], slot * pixels_HWC.nbytes + filled)
            if read == 0:
                raise OSError(f"{tempfile.gettempdir()}: a temporary file has become shorter")
            filled += read
        return KeptFrame(shown, pixels_HWC, is_damaged)


def free_disk_bytes() -> int:
    """What may be taken of the disk with temporary files; 0 where there is none."""
    try:
        disk = os.statvfs(tempfile.gettempdir())
    except OSError:
        return 0
    return int(disk.f_bavail * disk.f_frsize * FREE_SHARE)
