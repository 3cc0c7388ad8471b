"""Clips that could not be decoded while a policy was rolled out: as values on trajectories, and as lines for a user."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from envs.video.file import VideoError
from rl.trajectory import ClipFailure, TimeSpan, TrajectoryGroup

REMEDY = "`dynframe validate-data` finds every such clip, and training leaves them out"


@dataclass(frozen=True, slots=True)
class DistinctClipFailure:
    """One clip that failed, with the first trajectory it failed on."""

    failure: ClipFailure
    task_id: str
    group: int  # index in the step, from 0
    sibling: int  # index in the group, from 0
    count: int  # trajectories it ended


def clip_failure(error: VideoError, window: TimeSpan | None) -> ClipFailure:
    """The error as a value that travels with a trajectory.

    Args:
        window: what was asked for; None: the whole clip, for its coarse frames.
    """
    problem, remedy = (" ".join(text.split()) for text in (error.problem, error.remedy))
    return ClipFailure(error.path, window, type(error).__name__, problem, remedy)


def clip_failure_note(failure: ClipFailure) -> str:
    """Which clip, which window, what is wrong and what to do about it, on one line.

    CorruptVideoError: clips/a.mp4 (window 3 - 6 s): is truncated; download it again
    """
    window = failure.window
    asked = "coarse frames" if window is None else f"window {window.start_s:g} - {window.end_s:g} s"
    return f"{failure.error}: {failure.path} ({asked}): {failure.problem}; {failure.remedy}"


def clip_failure_line(failure: ClipFailure) -> str:
    """As `clip_failure_note`, with what to do about all such clips: for the terminal, once per clip."""
    return f"{clip_failure_note(failure)}; {REMEDY}"


def distinct_clip_failures(groups: Iterable[TrajectoryGroup]) -> list[DistinctClipFailure]:
    """Clips that failed in a step, each once, in order of appearance."""
    found: dict[str, DistinctClipFailure] = {}
    for index, group in enumerate(groups):
        for sibling, trajectory in enumerate(group.trajectories_G):
            failure = trajectory.clip_failure
            if failure is not None:
                first = found.get(failure.path, DistinctClipFailure(failure, group.task.task_id, index, sibling, 0))
                found[failure.path] = replace(first, count=first.count + 1)
    return list(found.values())
