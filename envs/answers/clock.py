"""Windows in running text, in seconds or as clock times: "[3, 8.5]", "from 0:03 to 0:08", "1 - 2 minutes"."""

from __future__ import annotations

import re

from rl.trajectory import TimeSpan

_SECONDS_IN = {"s": 1.0, "m": 60.0, "h": 3600.0, "秒": 1.0, "分": 60.0}
_UNIT = r"s(?:ec(?:ond)?s?)?|m(?:in(?:ute)?s?)?|h(?:(?:ou)?rs?)?|秒|分钟?"
_TIME = (
    r"(?:(?:(?P<h{0}>\d{{1,2}}):)?(?P<m{0}>\d{{1,3}}):(?P<s{0}>[0-5]\d(?:\.\d{{1,20}})?)|(?P<n{0}>\d{{1,9}}(?:\.\d{{1,20}})?))"
    rf"(?:\s?(?P<u{{0}}>{_UNIT})(?![^\W\d_])\.?)?"
)
_WINDOW = re.compile(
    r"(?<![\w.:/-])(?P<open>[\[(<]\s?)?(?P<word>(?:from|between)\s+)?" + _TIME.format(1) + r"\s*"
    r"(?P<joint>->|→|[-~,]|to\b|until\b|till\b|through\b|and\b)\s*" + _TIME.format(2) + r"(?P<close>\s?[\])>])?"
    r"(?![.:]?\d|[^\W\d_])",
    re.IGNORECASE | re.ASCII,
)
_NAMED = re.compile(  # {"start": 3.0, "end": 8.5}, "Start time: 0:03, end time: 0:08"
    r"\bstart(?:[_ ]?time)?[\"']?\s*[:=]\s*" + _TIME.format(1) + r"[\s,;]*(?:and\s+)?[\"']?"
    r"end(?:[_ ]?time)?[\"']?\s*[:=]\s*" + _TIME.format(2) + r"(?![.:]?\d|[^\W\d_])",
    re.IGNORECASE | re.ASCII,
)
_CHAIN = re.compile(r"\d\s*(?:[-~]|to\b)\s*\d[\d.:]*\s*(?:[-~]|to\b)\s*\d")  # 3 - 8 - 9, 2024-01-05


def windows_in(text: str) -> set[TimeSpan]:
    """Every window that a text names, forward in time or not.

    A comma joins two times within brackets, an "and" after "between".
    """
    if _CHAIN.search(text):
        return set()
    found = {window for found in _WINDOW.finditer(text) if (window := _window(found)) is not None}
    return found | {window for named in _NAMED.finditer(text) if (window := _edges(named)) is not None}


def read_clock_span(answer: str) -> TimeSpan | None:
    """The window that an answer is, and nothing else, forward in time or not."""
    found = _WINDOW.fullmatch(answer.strip())
    return None if found is None else _window(found)


def _window(found: re.Match[str]) -> TimeSpan | None:
    joint, word = found["joint"].lower(), (found["word"] or "").strip().lower()
    if (joint == "," and not (found["open"] and found["close"])) or (joint == "and") != (word == "between"):
        return None
    return _edges(found)


def _edges(found: re.Match[str]) -> TimeSpan | None:
    unit = found["u1"] or found["u2"]  # "1 - 2 minutes": both are
    start_s, end_s = _seconds(found, 1, unit), _seconds(found, 2, found["u2"] or unit)
    return None if start_s is None or end_s is None else TimeSpan(start_s, end_s)


def _seconds(found: re.Match[str], which: int, unit: str | None) -> float | None:
    """A time in seconds; None where there are 60 minutes and more beside hours."""
    if found[f"n{which}"]:
        return float(found[f"n{which}"]) * _SECONDS_IN[(unit or "s")[0].lower()]
    hours, minutes = int(found[f"h{which}"] or 0), int(found[f"m{which}"])
    if found[f"h{which}"] and minutes >= 60:
        return None
    return 3600.0 * hours + 60.0 * minutes + float(found[f"s{which}"])
