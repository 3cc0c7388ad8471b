"""How well a zoom fits the region and the moment that the question is about."""

from __future__ import annotations

from collections.abc import Sequence

from rl.trajectory import ToolCall, VideoTask


def zoom_region(task: VideoTask, call: ToolCall, *, column: str = "box", tolerance_s: float = 1.0) -> float | None:
    """IoU of the box with the annotated one, times 1 while the evidence is on screen, less outside of it.

    The box is the granted one, cut off at the frame's border: those are the pixels the policy saw.

    Args:
        column: of the row, with the region as [left, top, right, bottom] in thousandths of width and height.
        tolerance_s: distance from the evidence at which nothing is earned any more, falling on a straight line.
    Returns:
        0..1, or None if the task has no annotated region.
    Raises:
        ValueError: the annotation is no region, or tolerance_s is not positive.
    """
    if tolerance_s <= 0:
        raise ValueError(f"tolerance_s must be > 0, got {tolerance_s}")
    annotated = task.extra.get(column)
    if annotated is None or task.evidence_span is None:
        return None
    region, moment_s = _region(annotated, column), call.arguments["time_s"]
    away_s = min(max(window.start_s - moment_s, moment_s - window.end_s, 0.0) for window in task.evidence)
    return box_iou(call.box, region) * max(0.0, 1.0 - away_s / tolerance_s)


def box_iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes: left, top, right, bottom."""
    width = max(0.0, min(first[2], second[2]) - max(first[0], second[0]))
    height = max(0.0, min(first[3], second[3]) - max(first[1], second[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    union = sum(areas) - width * height
    return width * height / union if union > 0 else 0.0


def _region(value: object, column: str) -> tuple[float, ...]:
    is_box = isinstance(value, Sequence) and len(value) == 4 and all(isinstance(side, int | float) for side in value)
    if not is_box or not (0 <= value[0] < value[2] <= 1000 and 0 <= value[1] < value[3] <= 1000):
        raise ValueError(f"column {column!r} must be [left, top, right, bottom] in thousandths, got {value!r:.80}")
    return tuple(map(float, value))
