"""Windows in answers, in seconds: how they are read and written, and how two overlap."""

from __future__ import annotations

import math
import re

from rl.trajectory import TimeSpan

_NUMBER = r"(\d{1,9}(?:\.\d{0,20})?|\.\d{1,20})"  # 12.333333333333334, as programs write it
_SECONDS = r"\s*+(?:s|sec|secs|second|seconds)?\.?\s*+"  # possessive: a page of blanks is read once
_SPAN = re.compile(rf"(?:from\s++)?{_NUMBER}{_SECONDS}(?:[-–—−]|to)\s*+{_NUMBER}{_SECONDS}", re.IGNORECASE | re.ASCII)


def read_span(answer: str) -> TimeSpan | None:
    """The window an answer names: "3 - 8.5", "3s-8.5s", "from 3 to 8.5 seconds"; None if unreadable or not forward."""
    edges = read_edges(answer)
    return edges if edges is not None and edges.end_s > edges.start_s else None


def read_edges(answer: str) -> TimeSpan | None:
    """What is written as a window, forward in time or not."""
    found = _SPAN.fullmatch(answer.strip())
    return None if found is None else TimeSpan(float(found[1]), float(found[2]))


def spell_span(span: TimeSpan) -> str:
    """A window as an answer, to hundredths of a second; to more digits where it would be empty otherwise."""
    if round(span.start_s, 2) < round(span.end_s, 2):
        return f"{span.start_s:.2f} - {span.end_s:.2f}"
    return f"{span.start_s:.9f} - {span.end_s:.9f}"


def interval_iou(first: TimeSpan, second: TimeSpan) -> float:
    """Intersection over union of two windows, in 0..1; 0 where one is empty, reversed or not finite."""
    edges = (first.start_s, first.end_s, second.start_s, second.end_s)
    if not all(math.isfinite(edge) for edge in edges) or first.length_s <= 0 or second.length_s <= 0:
        return 0.0
    overlap_s = min(first.end_s, second.end_s) - max(first.start_s, second.start_s)
    hull_s = max(first.end_s, second.end_s) - min(first.start_s, second.start_s)
    return max(overlap_s, 0.0) / hull_s  # windows that overlap fill their hull, others score 0 anyway
