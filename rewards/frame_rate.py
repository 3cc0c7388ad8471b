"""How well the frame rate that was asked for fits the one the question needs."""

from __future__ import annotations

from rl.trajectory import RetrievalCall, VideoTask


def frame_rate(task: VideoTask, call: RetrievalCall, *, tolerance_fps: float = 5.0) -> float | None:
    """R_samp's second term: max(0, 1 - |f - f*| / 5), f the rate asked for, clamped to the limits and the native rate.

    Args:
        tolerance_fps: distance at which nothing is earned any more; the paper's 5.
    Returns:
        0..1, or None if the task has no annotated rate.
    Raises:
        ValueError: tolerance_fps is not positive.
    """
    if tolerance_fps <= 0:
        raise ValueError(f"tolerance_fps must be > 0, got {tolerance_fps}")
    if task.evidence_fps is None:
        return None
    return max(0.0, 1.0 - abs(call.fps - task.evidence_fps) / tolerance_fps)
