"""How well a window on the video clock fits the evidence."""

from __future__ import annotations

import math

from envs.answers.windows import interval_iou
from rl.trajectory import RetrievalCall, VideoTask

DIFFICULTY = (  # evidence shorter than this many seconds -> (alpha, beta); the DynFrame release's table
    (5.0, (0.6, 0.95)),
    (15.0, (0.5, 0.9)),
    (30.0, (0.4, 0.85)),
    (math.inf, (0.3, 0.8)),
)


def temporal_iou(task: VideoTask, call: RetrievalCall, *, scaled: bool = False) -> float | None:
    """R_samp's first term: IoU of the window that was looked at with the annotated evidence; of several, the best.

    The window is the granted one, asked and then clamped to the clip: those are the seconds the policy saw, and
    evidence never lies outside the clip. Clamping cannot turn a miss into a hit.

    Args:
        scaled: the DynFrame release's scaling, clamp((IoU - alpha) / (beta - alpha), 0, 1) in place of the IoU,
            with (alpha, beta) by the length of the evidence (`DIFFICULTY`); off by default.
    Returns:
        0..1, or None if the task has no evidence span.
    """
    if task.evidence_span is None:
        return None
    overlaps = [(interval_iou(call.span, window), window.length_s) for window in task.evidence]
    return max(scaled_iou(iou, length_s) if scaled else iou for iou, length_s in overlaps)


def scaled_iou(iou: float, evidence_s: float) -> float:
    """The release's difficulty scaling: nothing up to alpha, everything from beta, linear between."""
    alpha, beta = next(bounds for limit_s, bounds in DIFFICULTY if evidence_s < limit_s)
    return min(max((iou - alpha) / (beta - alpha), 0.0), 1.0)
