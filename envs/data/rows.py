"""From an annotation file to rows, and from a row to typed values: what cannot be used says why.

A reader of rows yields (line, value) pairs, lines counted from 1; a row that cannot be read is an `UnusableRow` in the
place of its value. Readers of values raise it.
"""

from __future__ import annotations

import csv
import io
import json
import re
import stat
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rl.trajectory import TimeSpan

LONGEST_LINE = 16 * 2**20  # bytes; a longer one is no row, and is not kept in memory to find that out
LONGEST_TEXT = 100_000  # characters of one value: beyond any question, and beyond any context
LARGEST_FILE = 2**31  # bytes, of the kinds that are read as a whole
VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".MP4")
LONGEST_PATH = 4096  # characters; Linux takes as many bytes
UNNAMABLE = ("Cc", "Zl", "Zp", "Cs")  # Unicode categories: controls, ends of lines and paragraphs, halves of pairs


class DatasetError(ValueError):
    """The annotation file as a whole cannot be used; the message names it and the remedy."""


class UnusableRow(ValueError):
    """One row cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class RepeatedKey:
    """An object of a JSON text in which a key stands twice: nobody knows which of its values is meant."""

    key: str


def text_lines(path: Path) -> Iterator[tuple[int, str | UnusableRow]]:
    """Lines that are not blank, stripped."""
    with path.open("rb") as file:
        for line, raw in enumerate(_bounded_lines(file), start=1):
            if len(raw) > LONGEST_LINE:
                yield line, UnusableRow(f"the line is longer than {LONGEST_LINE:,} bytes")
                continue
            try:
                text = raw.decode("utf-8-sig" if line == 1 else "utf-8").strip()
            except UnicodeDecodeError:
                yield line, UnusableRow("not UTF-8 text")
                continue
            if text:
                yield line, text


def json_lines(path: Path) -> Iterator[tuple[int, object]]:
    """One JSON value per line."""
    for line, text in text_lines(path):
        yield line, text if isinstance(text, UnusableRow) else _decoded_json(text)


def json_array(path: Path) -> Iterator[tuple[int, object]]:
    """Elements one by one, each with its line; what follows a broken one cannot be told apart: it is one bad row."""
    try:
        text = _whole_text(path)
    except UnicodeDecodeError:
        yield 1, UnusableRow("not UTF-8 text")
        return
    decoder, blanks = json.JSONDecoder(object_pairs_hook=_object), re.compile(r"[\s,]*")
    at, line = blanks.match(text).end(), 1
    if text[at : at + 1] != "[":
        yield 1, UnusableRow("not JSON: expected an array of rows")
        return
    counted, at = 0, at + 1
    while True:
        at = blanks.match(text, at).end()
        line, counted = line + text.count("\n", counted, at), at
        if text[at : at + 1] == "]":
            return
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            yield line, UnusableRow(f"not JSON from here on: {error}")
            return
        yield line, value


def csv_rows(path: Path) -> Iterator[tuple[int, object]]:
    """Rows of a CSV file as mappings from the names in its first line; every value is a text."""
    try:
        text = _whole_text(path)
    except UnicodeDecodeError:
        yield 1, UnusableRow("not UTF-8 text")
        return
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        for row in reader:
            within = sum(value.count("\n") for value in row.values() if isinstance(value, str))
            yield reader.line_num - within, row
    except csv.Error as error:
        yield reader.line_num, UnusableRow(f"not CSV from here on: {error}")


def json_object(path: Path) -> Mapping[str, object]:
    """A file that is one JSON object.

    Raises:
        DatasetError: there is no such file, or it is something else.
    """
    try:
        value = json.loads(_whole_text(path), object_pairs_hook=_object)
    except (OSError, ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise DatasetError(f"{path} cannot be read as one JSON object: {error}") from error
    if not isinstance(value, dict):
        raise DatasetError(f"{path} must hold one JSON object, got {type(value).__name__}")
    return value


def as_mapping(row: object) -> Mapping[str, object]:
    """The row itself, if it has keys."""
    if isinstance(row, RepeatedKey):
        raise UnusableRow(f"the key {shortened(row.key)} stands twice")
    if not isinstance(row, dict):
        raise UnusableRow(f"expected an object with keys, got {type(row).__name__}")
    return row


def text_at(row: Mapping[str, object], key: str) -> str:
    """A text that is not empty."""
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise UnusableRow(f"{key!r} must be a text that is not empty, got {shortened(value)}")
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


def forward(span: TimeSpan, name: str) -> TimeSpan:
    """The span itself, if it begins in the video and ends after its beginning."""
    if span.start_s < 0:
        raise UnusableRow(f"{name} begins before the video: {span.start_s:g} - {span.end_s:g}")
    if span.end_s <= span.start_s:
        raise UnusableRow(f"{name} is reversed or empty: {span.start_s:g} - {span.end_s:g}")
    return span


def windows_at(row: Mapping[str, object], key: str) -> tuple[TimeSpan, ...]:
    """The windows [[start, end], …] in seconds that are forward in the video, at least one; others are left out.

    One window alone may stand without the outer list.
    """
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
    if not windows:
        raise faults[0]
    return tuple(windows)


def _window(pair: object, name: str) -> TimeSpan:
    if not isinstance(pair, list) or len(pair) != 2:
        raise UnusableRow(f"{name} must be [start, end], got {shortened(pair)}")
    edges = {"start": pair[0], "end": pair[1]}
    start_s, end_s = number_at(edges, "start"), number_at(edges, "end")
    if start_s is None or end_s is None:
        raise UnusableRow(f"{name} must be [start, end], got {shortened(pair)}")
    return forward(TimeSpan(start_s, end_s), name)


def video_file(name: str, root: Path, folders: tuple[str, ...] = ("",)) -> str:
    """The path under `root` of the video called `name`, with or without its suffix, in the first folder that has it.

    Where none has it, the path it would have: `confine` then says that it is missing.
    """
    for folder in folders:
        for suffix in ("", *VIDEO_SUFFIXES):
            path = f"{folder}/{name}{suffix}" if folder else f"{name}{suffix}"
            if _is_file(root, path):
                return path
    return name if name.endswith(VIDEO_SUFFIXES) else f"{name}.mp4"


def confine(path: str, root: Path) -> str:
    """The absolute path of an existing regular file under `root`, links resolved. Nothing is opened.

    A name may be odd (blanks, quotes, any script), but fits on one line and can be written as UTF-8, as it goes through
    logs, records and pages; so may what it links to.

    Raises:
        UnusableRow: there is no such file, it lies elsewhere, or its name cannot be used.
    """
    home = root.resolve()
    _require_name(path, path)
    try:
        resolved = (home / path).resolve(strict=True)
        is_regular = stat.S_ISREG(resolved.stat().st_mode)  # a fifo would be waited for, a device never ends
    except (OSError, ValueError, RuntimeError) as error:  # missing, too long, a circle of links
        reason = error.strerror if isinstance(error, OSError) else error
        raise UnusableRow(f"video {shortened(path)} cannot be found under {root}: {reason}") from error
    if not resolved.is_relative_to(home):
        raise UnusableRow(f"video {shortened(path)} lies outside {root}")
    if not is_regular:
        raise UnusableRow(f"video {shortened(path)} is not a regular file")
    _require_name(path, str(resolved))
    return str(resolved)


def _require_name(asked: str, path: str) -> None:
    if len(path) > LONGEST_PATH:
        raise UnusableRow(
            f"video {shortened(asked)}: a path of {len(path)} characters, at most {LONGEST_PATH} are read"
        )
    odd = next((character for character in path if unicodedata.category(character) in UNNAMABLE), None)
    if odd is not None:
        whose = "its name" if asked == path else "the name it links to"
        raise UnusableRow(
            f"video {shortened(asked)}: {whose} holds {odd!a}, no line end, control or byte beyond UTF-8 may"
        )


def shortened(value: object) -> str:
    """A value as an error message shows it."""
    if isinstance(value, int) and abs(value) > 10**18:
        return "a huge integer"
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}…"


def one_line(error: Exception) -> str:
    """What an error says, on one line of bounded length: it may quote the row."""
    said = str(error)
    return " ".join((said if len(said) <= 500 else f"{said[:300]} … {said[-200:]}").split())


def _decoded_json(text: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        return UnusableRow(f"not JSON: {error}")


def _object(pairs: list[tuple[str, object]]) -> dict[str, object] | RepeatedKey:
    made = dict(pairs)
    if len(made) == len(pairs):
        return made
    seen: set[str] = set()
    return RepeatedKey(next(key for key, _ in pairs if key in seen or seen.add(key)))


def _bounded_lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines as they are, but of those that are too long one byte more than is allowed."""
    while raw := file.readline(LONGEST_LINE + 1):
        yield raw
        while len(raw) > LONGEST_LINE and not raw.endswith(b"\n"):
            raw = file.readline(LONGEST_LINE + 1)


def _whole_text(path: Path) -> str:
    if path.stat().st_size > LARGEST_FILE:
        raise DatasetError(f"{path}: larger than {LARGEST_FILE:,} bytes; cut it into several, or use JSON lines")
    return path.read_bytes().decode("utf-8-sig")


def _is_file(root: Path, path: str) -> bool:
    try:
        return (root / path).is_file()
    except (OSError, ValueError):  # a name too long, or with a NUL
        return False
