"""Video for the environment: what a clip is, and its frames at given times, within a deadline and a limit of memory.

    reader = VideoReader(backend="pyav", timeout_s=60, workers=1, frame_cache_bytes=256 << 20)
    clip = reader.describe("clip.mp4")                                        # .duration_s .native_fps .height .width
    pixels_THWC, times_s, damaged = reader.frames("clip.mp4", (0.0, 0.5), (252, 448))

Calls block and are thread-safe. Every failure is a VideoError that names the file, the problem and the remedy.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence

import numpy as np

from envs.video.clip_check import ClipCheck
from envs.video.decode_memory import MIB
from envs.video.decode_process import DecodeProcess, DecoderDiedError
from envs.video.decoder import Decoder
from envs.video.file import (
    CorruptVideoError,
    DecodingFailedError,
    FrameRangeError,
    NoVideoStreamError,
    VideoError,
    VideoMemoryError,
    VideoOpenError,
    VideoTimeoutError,
)
from envs.video.frames import read_frames
from envs.video.index import VideoIndex
from envs.video.indexing import index_video
from rl.trajectory import Fault

__all__ = [
    "ClipCheck",
    "CorruptVideoError",
    "DecoderDiedError",
    "DecodingFailedError",
    "FrameRangeError",
    "NoVideoStreamError",
    "VideoError",
    "VideoIndex",
    "VideoMemoryError",
    "VideoOpenError",
    "VideoReader",
    "VideoTimeoutError",
    "index_video",
    "read_frames",
]


class VideoReader:
    """Decodes on request, in killable processes.

    A clip always goes to the same process, whose frame cache then holds it: the windows of a group decode nothing.
    """

    def __init__(
        self,
        backend: str = "pyav",
        timeout_s: float = 60.0,
        workers: int = 1,
        frame_cache_bytes: int = 268_435_456,
        memory_mib: int = 2048,
        *,
        stall_timeout_s: float = 120.0,
        frame_cache_disk_bytes: int = 4_294_967_296,
    ) -> None:
        """
        Args:
            backend: pyav, or decord (plain files only; others raise).
            timeout_s: processor time of one request; a process beyond it is killed and replaced. No effect with
                `workers=0`.
            workers: decoding processes; 0 decodes in the caller's thread, without a deadline or a limit of memory, and
                a decoder that crashes takes the caller with it: for clips of one's own making.
            frame_cache_bytes: decoded frames kept in memory, all processes together; 0 keeps none, on disk neither.
            memory_mib: of one process, beyond its share of the frame cache; a clip that needs more is refused.
                No effect with `workers=0`.
            stall_timeout_s: of a request that uses no processor time (a disk that does not answer). As `timeout_s`.
            frame_cache_disk_bytes: decoded frames kept in temporary files, where they are too many for
                `frame_cache_bytes`; all processes together.
        """
        if workers == 0:
            decoder = Decoder(backend, frame_cache_bytes, frame_cache_disk_bytes=frame_cache_disk_bytes)
            self._decoders: list[Decoder | DecodeProcess] = [decoder]
        else:
            Decoder(backend, 0)  # refuses an unknown backend here rather than in a child
            self._decoders = [
                DecodeProcess(
                    backend,
                    frame_cache_bytes // workers,
                    timeout_s,
                    memory_mib * MIB,
                    stall_timeout_s=stall_timeout_s,
                    frame_cache_disk_bytes=frame_cache_disk_bytes // workers,
                )
                for _ in range(workers)
            ]

    def describe(self, path: str) -> VideoIndex:
        """Length, rate, display size and packet index.

        Raises:
            VideoError: the video cannot be used.
        """
        return self._decoder_of(path).describe(path)

    def frames(
        self,
        path: str,
        times_s: Sequence[float],
        size_HW: tuple[int, int],
        later_HW: tuple[int, int] | None = None,
    ) -> tuple[np.ndarray, tuple[float, ...], int]:
        """The frame on screen at each time.

        Args:
            later_HW: the size that later requests for this clip will have; None: the same; (0, 0): there will be none.
                It says what is worth to be kept, and changes no pixel.
        Returns:
            Pixels (T, H, W, 3) uint8 RGB; presentation time of each, in seconds; how many stand in for damaged ones.
        Raises:
            VideoError: the video cannot be used, a time lies outside it, or the deadline passed.
        """
        return self._decoder_of(path).frames(path, times_s, size_HW, later_HW)

    def check(self, path: str, *, sample: bool = False) -> ClipCheck:
        """Decode every frame in one pass, and random ones again from their keyframes.

        Args:
            sample: only a few random frames.
        Raises:
            VideoError: the video cannot be used, or shows other pictures when decoding begins in its middle.
        """
        return self._decoder_of(path).check(path, sample)

    def progress(self) -> int:
        """A number that changes as long as decoding processes get on with their requests."""
        return sum(decoder.progress() for decoder in self._decoders if isinstance(decoder, DecodeProcess))

    def take_faults(self) -> list[Fault]:
        """Decoding processes that broke and were replaced since the last call of this method."""
        processes = [decoder for decoder in self._decoders if isinstance(decoder, DecodeProcess)]
        return [fault for process in processes for fault in process.take_faults()]

    def close(self) -> None:
        """End the decoding processes. Further requests start new ones."""
        for decoder in self._decoders:
            decoder.close()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _decoder_of(self, path: str) -> Decoder | DecodeProcess:
        try:
            name = os.fsencode(path)
        except UnicodeEncodeError as error:
            raise VideoOpenError(path, "is no file's name (half a Unicode pair)", "check the path") from error
        return self._decoders[zlib.crc32(name) % len(self._decoders)]
