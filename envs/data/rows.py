"""From a row of an annotation file to typed values: what cannot be used says why.

A reader of rows yields (line, value) pairs, lines counted from 1; a row that cannot be read is an `UnusableRow` in the
place of its value. Readers of values raise it.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from rl.trajectory import TimeSpan

LONGEST_TEXT = 100_000  # characters of one value: beyond any question, and beyond any context
_NUMBER = re.compile(r"\s*+[-+]?+(?:[0-9]++\.?+[0-9]*+|\.[0-9]++)(?:[eE][-+]?+[0-9]{1,4}+)?\s*+")  # not 1_000, not ٣
_LONGEST_SHOWN = 60  # characters of a value in a message


class DatasetError(ValueError):
    """The annotation file as a whole cannot be used; the message names it and the remedy."""


class UnusableRow(ValueError):
    """One row cannot be used; the message says why."""


class MissingMedia(UnusableRow):
    """The video or image of a row is not there."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name  # as the row has it; a video's with the suffix it would have


def missing_medium(error: BaseException | None) -> str:
    """The medium whose absence is why a row cannot be used; empty if there is another reason."""
    while error is not None and not isinstance(error, MissingMedia):
        error = error.__cause__
    return "" if error is None else error.name


@dataclass(frozen=True, slots=True)
class RepeatedKey:
    """An object of a JSON text in which a key stands twice: nobody knows which of its values is meant."""

    key: str


def as_mapping(row: object) -> Mapping[str, object]:
    """The row itself, if it has keys."""
    if isinstance(row, RepeatedKey):
        raise UnusableRow(f"the key {shortened(row.key)} stands twice")
    if not isinstance(row, dict):
        raise UnusableRow(f"expected an object with keys, got {kind_of(row)}")
    return row


def text_at(row: Mapping[str, object], key: str) -> str:
    """A text that is not empty."""
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        there = "" if key in row or not row else f"; the row has {', '.join(map(repr, itertools.islice(row, 12)))}"
        raise UnusableRow(f"{key!r} must be a text that is not empty, got {shortened(value)}{there}")
    if len(value) > LONGEST_TEXT:
        raise UnusableRow(f"{key!r} is longer than {LONGEST_TEXT:,} characters")
    if not value.isprintable() and any("\ud800" <= character <= "\udfff" for character in value):
        raise UnusableRow(f"{key!r} holds half a Unicode pair")
    return value


def number_at(row: Mapping[str, object], key: str) -> float | None:
    """A finite number; None if there is none."""
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e9:  # NaN is not <= either
        raise UnusableRow(f"{key!r} must be a finite number, got {shortened(value)}")
    return float(value)


def number_of(text: str) -> float | str:
    """The decimal number that a text is; the text itself if it is none, for `number_at` to refuse."""
    return float(text) if _NUMBER.fullmatch(text) else text


def forward(span: TimeSpan, name: str) -> TimeSpan:
    """The span itself, if it begins in the video and ends after its beginning."""
    if span.start_s < 0:
        raise UnusableRow(f"{name} begins before the video: {span.start_s:g} - {span.end_s:g}")
    if span.end_s <= span.start_s:
        raise UnusableRow(f"{name} is reversed or empty: {span.start_s:g} - {span.end_s:g}")
    return span


def windows_at(row: Mapping[str, object], key: str) -> tuple[TimeSpan, ...]:
    """The windows [[start, end], …] in seconds that are forward in the video, at least one.

    One window alone may stand without the outer list. Of several, unusable ones are left out (`unusable_windows`).
    """
    windows, faults = _windows(row, key)
    if not windows:
        raise faults[0]
    return windows


def unusable_windows(row: Mapping[str, object], key: str) -> tuple[str, ...]:
    """Why windows of a row that can be used are left out, one reason each."""
    return () if row.get(key) is None else tuple(map(str, _windows(row, key)[1]))


def _windows(row: Mapping[str, object], key: str) -> tuple[tuple[TimeSpan, ...], list[UnusableRow]]:
    pairs = row.get(key)
    if isinstance(pairs, list) and len(pairs) == 2 and not any(isinstance(edge, list) for edge in pairs):
        pairs = [pairs]
    if not isinstance(pairs, list) or not pairs:
        raise UnusableRow(f"{key!r} must be a list of windows [[start, end], …] in seconds, got {shortened(pairs)}")
    windows, faults = [], []
    for number, pair in enumerate(pairs, start=1):
        try:
            windows.append(_window(pair, f"window {number} of {key!r}"))
        except UnusableRow as fault:
            faults.append(fault)
    return tuple(windows), faults


def _window(pair: object, name: str) -> TimeSpan:
    if not isinstance(pair, list) or len(pair) != 2:
        raise UnusableRow(f"{name} must be [start, end], got {shortened(pair)}")
    edges = {"start": pair[0], "end": pair[1]}
    start_s, end_s = number_at(edges, "start"), number_at(edges, "end")
    if start_s is None or end_s is None:
        raise UnusableRow(f"{name} must be [start, end], got {shortened(pair)}")
    return forward(TimeSpan(start_s, end_s), name)


def shortened(value: object) -> str:
    """A value as an error message shows it: as it would stand in the file, texts in quotes, at most 60 characters."""
    shown = "nothing" if value is None else _shown(value, depth=3)
    return shown if len(shown) <= _LONGEST_SHOWN else f"{shown[:_LONGEST_SHOWN]}…"


def kind_of(value: object) -> str:
    """What a value is, in words of the file's format."""
    if isinstance(value, RepeatedKey):
        return shortened(value)
    if value is None:
        return "nothing"
    kinds = ((str, "a text"), (bool, "true or false"), (int | float, "a number"), (list, "a list"), (dict, "an object"))
    return next((said for kind, said in kinds if isinstance(value, kind)), shortened(value))


def plain(value: object) -> object:
    """A value that code made as a file would hold it: paths are texts, tuples lists, numpy's numbers numbers."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return value


def one_line(error: Exception) -> str:
    """What an error says, on one line of bounded length: it may quote the row."""
    said = str(error)
    return " ".join((said if len(said) <= 500 else f"{said[:300]} … {said[-200:]}").split())


def _shown(value: object, depth: int) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case RepeatedKey(key):
            return f"an object in which {shortened(key)} stands twice"
        case list() | tuple():
            return f"[{_several((_shown(item, depth - 1) for item in value[:_LONGEST_SHOWN]), depth)}]"
        case dict():
            pairs = itertools.islice(value.items(), _LONGEST_SHOWN)
            return f"{{{_several((f'{key!r}: {_shown(item, depth - 1)}' for key, item in pairs), depth)}}}"
        case str():
            return repr(value[: 2 * _LONGEST_SHOWN])
        case bytes():
            return "binary data"
        case int() if abs(value) > 10**18:
            return "a huge integer"
    return str(value)


def _several(shown: Iterator[str], depth: int) -> str:
    return ", ".join(shown) if depth else "…"
