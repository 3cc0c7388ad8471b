"""Decoding where it stands, in the caller's process or in a child's: frames of a clip, and errors that name it.

Legend: T frames asked for · H W pixels · C colours (RGB).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs.video.clip_check import ClipCheck, check_clip_frames, sample_clip_frames
from envs.video.decode_memory import MIB, data_bytes, peak_data_bytes
from envs.video.file import CorruptVideoError, DecodingFailedError, VideoError, VideoMemoryError
from envs.video.frame_cache import FrameCache, read_frames_through
from envs.video.index import VideoIndex
from envs.video.indexing import index_video

BACKENDS = ("pyav", "decord")
CHECKED_HW = (28, 28)
SHORT_SHARE = 0.5  # of its memory, left when frames came out damaged: a picture that found no room may have been why


class Decoder:
    """Answers requests for frames, in this process."""

    def __init__(
        self,
        backend: str,
        frame_cache_bytes: int,
        memory_bytes: int | None = None,
        frame_cache_disk_bytes: int = 0,
        cpu_limit_s: float | None = None,
    ) -> None:
        """
        Args:
            memory_bytes: what this process may use beyond the frame cache, where that is limited.
            frame_cache_disk_bytes: of frames kept in temporary files.
            cpu_limit_s: processor time of a request, where that is limited.
        """
        if backend not in BACKENDS:
            raise ValueError(f"video.backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
        self._backend, self._memory_bytes, self._cpu_limit_s = backend, memory_bytes, cpu_limit_s
        self.frame_cache = FrameCache(frame_cache_bytes, frame_cache_disk_bytes)
        self._held_bytes = data_bytes()  # before any request

    def describe(self, path: str) -> VideoIndex:
        """Index of a video; see index_video."""
        return self._typed(path, lambda: index_video(path))

    def frames(
        self,
        path: str,
        times_s: Sequence[float],
        size_HW: tuple[int, int],
        later_HW: tuple[int, int] | None = None,
    ) -> tuple[np.ndarray, tuple[float, ...], int]:
        """Frames on screen at these times; see read_frames_through."""
        pixels_THWC, shown_s_T, damaged = self._typed(path, lambda: self._read(path, times_s, size_HW, later_HW))
        if (damaged or self._backend == "decord") and self._was_short():  # decord does not report damage
            raise self._short_of_memory(path)
        return pixels_THWC, shown_s_T, damaged

    def check(self, path: str, sample: bool) -> ClipCheck:
        """Decode every frame of a video, or a sample of them; see check_clip_frames, sample_clip_frames."""

        def work() -> ClipCheck:
            index = index_video(path)
            if self._backend == "decord":
                self._read(path, (0.0,), CHECKED_HW, None)  # refuses what decord would get wrong
            return sample_clip_frames(index) if sample else check_clip_frames(index)

        outcome = self._typed(path, work)
        if outcome.damaged and self._was_short():
            raise self._short_of_memory(path)
        return outcome

    def close(self) -> None:
        """Nothing is held open."""

    def _read(
        self, path: str, times_s: Sequence[float], size_HW: tuple[int, int], later_HW: tuple[int, int] | None
    ) -> tuple[np.ndarray, tuple[float, ...], int]:
        index = index_video(path)
        if self._backend == "decord":
            from envs.video.decord_backend import (
                read_frames_decord,  # the library is loaded only by those who choose it
            )

            return read_frames_decord(index, times_s, size_HW)
        return read_frames_through(self.frame_cache, index, times_s, size_HW, later_HW, self._cpu_limit_s)

    def _typed(self, path: str, work: Callable[[], Any]) -> Any:
        """What a file makes a decoder raise is about the file, whatever it is."""
        try:
            return work()
        except CorruptVideoError as error:
            raise (self._short_of_memory(path) if self._was_short() else error) from error.__cause__
        except (VideoError, ImportError):
            raise
        except MemoryError as error:
            raise self._short_of_memory(path) from error
        except Exception as error:  # a header may break an assumption anywhere; the place is for a bug report
            place = error.__traceback__
            while place.tb_next is not None:
                place = place.tb_next
            where = f"{Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}"
            problem = f"decoding failed ({type(error).__name__}: {error}, {where})"
            raise DecodingFailedError(path, problem, "re-encode the file or drop the row") from error

    def _was_short(self) -> bool:
        """FFmpeg leaves out a picture for which there is no room as it leaves out a damaged one."""
        if self._memory_bytes is None:
            return False
        all_bytes = self._memory_bytes + self.frame_cache.budget_bytes
        return peak_data_bytes() - self._held_bytes > all_bytes - SHORT_SHARE * self._memory_bytes

    def _short_of_memory(self, path: str) -> VideoMemoryError:
        if self._memory_bytes is None:
            return VideoMemoryError(path, "there is not enough memory to decode it", "free some, or drop the row")
        problem = f"decoding needs more than the {self._memory_bytes // MIB} MiB a decoding process may use"
        remedy = "raise video.decode_memory_mib or scale the video down; if its header is damaged, drop the row"
        return VideoMemoryError(path, problem, remedy)
