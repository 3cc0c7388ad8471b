"""Reading an answer: the letter or the window it names, and how two windows overlap. One reading, for rewards and
benchmarks alike.
"""

from __future__ import annotations

import math
import re

from rl.trajectory import TimeSpan

_LETTER = re.compile(r"(?:\(([A-Za-z])\)|([A-Za-z]))(?:[.):](?:\s.*)?|(?<=\))\s.*)?", re.DOTALL)
_NUMBER = r"(\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})"
_SECONDS = r"\s*+(?:s|sec|secs|seconds)?\.?\s*+"  # possessive: a page of blanks is read once
_SPAN = re.compile(rf"(?:from\s++)?{_NUMBER}{_SECONDS}(?:-|–|—|to)\s*+{_NUMBER}{_SECONDS}", re.IGNORECASE | re.ASCII)


def read_letter(answer: str) -> str | None:
    """The option an answer chooses, upper case: "B", "b", "(B)", "B.", "B. text", "B) text", "(B) text", "B: text".

    A bare letter followed by words ("A dog runs") is no choice: it is an article as often as an option.
    """
    found = _LETTER.fullmatch(answer.strip())
    return (found[1] or found[2]).upper() if found else None


def read_span(answer: str) -> TimeSpan | None:
    """The window an answer names: "3 - 8.5", "3s-8.5s", "from 3 to 8.5 seconds"; None if unreadable or not forward."""
    found = _SPAN.fullmatch(answer.strip())
    if found is None or float(found[2]) <= float(found[1]):
        return None
    return TimeSpan(float(found[1]), float(found[2]))


def interval_iou(first: TimeSpan, second: TimeSpan) -> float:
    """Intersection over union of two windows, in 0..1; 0 where one is empty, reversed or not finite."""
    edges = (first.start_s, first.end_s, second.start_s, second.end_s)
    if not all(math.isfinite(edge) for edge in edges) or first.length_s <= 0 or second.length_s <= 0:
        return 0.0
    overlap_s = min(first.end_s, second.end_s) - max(first.start_s, second.start_s)
    hull_s = max(first.end_s, second.end_s) - min(first.start_s, second.start_s)
    return max(overlap_s, 0.0) / hull_s  # windows that overlap fill their hull, others score 0 anyway
