"""What benchmarks share when they score: how windows overlap, what a prediction says, the values of one example.

IoU is intersection over hull and a threshold is reached with >=, as in the official evaluators. Nothing is guessed: an
answer that cannot be read is worth 0 and says "unparsed".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from envs.answers.letters import read_letter
from envs.answers.windows import interval_iou, read_span
from envs.benchmarks.benchmark import Example, Prediction
from rl.trajectory import TimeSpan

GROUP_SEPARATOR = "; "  # between the groups of an example that belongs to several


def best_iou(window: TimeSpan | None, evidence: Sequence[TimeSpan]) -> float:
    """The largest IoU of a window with one of the annotated ones; 0 without a window."""
    return 0.0 if window is None else max((interval_iou(window, one) for one in evidence), default=0.0)


def best_iop(window: TimeSpan | None, evidence: Sequence[TimeSpan]) -> float:
    """The largest intersection over the window's own length; 0 without a window."""
    return 0.0 if window is None else max((_iop(window, one) for one in evidence), default=0.0)


def chosen_letter(prediction: Prediction | None) -> str | None:
    """The option that the answer's body chooses; the text around it is not looked at."""
    return None if prediction is None or prediction.answer is None else read_letter(prediction.answer)


def stated_window(prediction: Prediction | None) -> TimeSpan | None:
    """The window that the answer's body names; None also where it is reversed or empty."""
    return None if prediction is None or prediction.answer is None else read_span(prediction.answer)


def looked_at(prediction: Prediction | None) -> TimeSpan | None:
    """The last window that was looked at: what the policy had seen when it answered. None: it never looked."""
    return None if prediction is None or not prediction.windows else prediction.windows[-1]


def is_right(example: Example, prediction: Prediction | None) -> bool:
    """Options are compared by letter, never by text: two options may share one."""
    return example.answerable and chosen_letter(prediction) == example.task.answer


def group_names(example: Example) -> tuple[str, ...]:
    """The groups of an example as they stand in names of metrics."""
    return tuple(name.replace(" ", "_") for name in example.group.split(GROUP_SEPARATOR) if name)


def choice_values(example: Example, prediction: Prediction | None) -> dict[str, float]:
    """Accuracy over all questions, and within each group of the example."""
    right = float(is_right(example, prediction))
    values = {"accuracy": right} | {f"accuracy/{name}": right for name in group_names(example)}
    return values if prediction is None else values | {"unparsed": float(chosen_letter(prediction) is None)}


def moment_values(
    example: Example, prediction: Prediction | None, thresholds: Sequence[float] = (0.3, 0.5, 0.7)
) -> dict[str, float]:
    """R1 at each threshold, and mIoU, of the one window that the answer names; over all sentences."""
    window = stated_window(prediction)
    iou = best_iou(window, example.windows)
    values = recall_values(iou, thresholds)
    return values if prediction is None else values | {"unparsed": float(window is None)}


def recall_values(iou: float, thresholds: Sequence[float]) -> dict[str, float]:
    """Whether one window reaches each threshold, and its IoU as it enters the mean."""
    return {f"r1@{threshold}": float(iou >= threshold) for threshold in thresholds} | {"miou": iou}


def grounded_unparsed(prediction: Prediction | None) -> dict[str, float]:
    """Of an answer that needs both: whether its letter, its window, or either of them is not there."""
    if prediction is None:
        return {}
    no_letter, no_window = chosen_letter(prediction) is None, looked_at(prediction) is None
    return {
        "unparsed": float(no_letter or no_window),
        "unparsed/answer": float(no_letter),
        "unparsed/window": float(no_window),
    }


def _iop(window: TimeSpan, evidence: TimeSpan) -> float:
    """NExT-GQA's intersection over prediction; a point is wholly inside (edges included) or wholly outside."""
    if not (math.isfinite(window.start_s) and math.isfinite(window.end_s)) or window.length_s < 0:
        return 0.0
    if window.length_s == 0:
        return float(evidence.start_s <= window.start_s <= evidence.end_s)
    overlap_s = min(window.end_s, evidence.end_s) - max(window.start_s, evidence.start_s)
    return max(overlap_s, 0.0) / window.length_s
