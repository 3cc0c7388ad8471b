"""The page of a run's folder, with pictures decoded from its clips. Part of the composition root."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from rich.console import Console

from envs.video.reader import VideoError, VideoIndex, VideoReader
from rl.report.build import MIB, Written, build_report
from rl.report.thumbnails import FramesUnavailableError
from rl.run.console.stages import Stage, counted_stage

REPORT = "report.html"  # in a run's folder
LARGEST_BYTES = 20 * MIB  # unless somebody says otherwise
HALF_MS = 0.00055  # records round times to milliseconds: the frame that starts then is the one on screen just after
SAME_FRAME_MS = 1  # a frame that starts elsewhere is another one: the clip is not the one that was rolled out


class ClipFrames:
    """Frames for thumbnails, through envs.video.reader."""

    def __init__(self, reader: VideoReader) -> None:
        self._reader = reader

    def duration_s(self, video: str) -> float:
        """Length of a clip. Raises FramesUnavailableError."""
        return self._describe(video).duration_s

    def frames(self, video: str, times_ms: Sequence[int], longest_side: int) -> list[np.ndarray]:
        """The frames presented at these times, at most `longest_side` pixels. Raises FramesUnavailableError."""
        if not times_ms:
            return []
        size_HW = self._small(video, longest_side)
        try:
            pixels_THWC, shown_s, _ = self._reader.frames(video, [ms / 1000 + HALF_MS for ms in times_ms], size_HW)
        except VideoError as error:
            raise FramesUnavailableError(f"{Path(video).name}: {error.problem}") from error
        for ms, time_s in zip(times_ms, shown_s, strict=True):
            if abs(1000 * time_s - ms) > SAME_FRAME_MS:
                problem = f"has no frame that starts at {ms / 1000:.3f} s: it is not the clip that was rolled out"
                raise FramesUnavailableError(f"{Path(video).name} {problem}")
        return list(pixels_THWC)

    def shown_at(self, video: str, times_s: Sequence[float], longest_side: int) -> list[np.ndarray]:
        """The frames on screen at these times, at most `longest_side` pixels. Raises FramesUnavailableError."""
        try:
            return list(self._reader.frames(video, times_s, self._small(video, longest_side))[0])
        except VideoError as error:
            raise FramesUnavailableError(f"{Path(video).name}: {error.problem}") from error

    def _small(self, video: str, longest_side: int) -> tuple[int, int]:
        """Height and width in pixels."""
        index = self._describe(video)
        scale = min(1.0, longest_side / max(index.height, index.width))
        return max(1, round(index.height * scale)), max(1, round(index.width * scale))

    def _describe(self, video: str) -> VideoIndex:
        try:
            return self._reader.describe(video)
        except VideoError as error:
            raise FramesUnavailableError(f"{Path(video).name}: {error.problem}") from error


def write_report(run: Path, out: Path, max_bytes: int, console: Console) -> Written:
    """Write the page of a folder that is laid out as a run's; says how far it is, and what it left out.

    Raises:
        ConfigError: nothing reported yet, or the budget is too small.
    """
    with VideoReader(workers=1) as reader, ExitStack() as stages:
        under_way: dict[str, Stage] = {}  # the last job

        def progress(job: str, done: int, total: int) -> None:
            if job not in under_way:
                stages.close()
                under_way.clear()
                under_way[job] = stages.enter_context(counted_stage(console, job, total))
            under_way[job].update(done, total)

        written = build_report(run, out, ClipFrames(reader), max_bytes=max_bytes, progress=progress)
    for notice in written.notices:
        console.print(notice, markup=False, highlight=False)
    return written
