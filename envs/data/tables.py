"""Tables (CSV, Parquet) as rows of `dm_rl`: which column is which, and what a cell of it means.

A configuration's `columns` names the column of each value, as `{prompt: question, video: clip}`; values that it leaves
out are looked for under their own names. All further columns are kept under theirs.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path

from envs.data.csv_rows import csv_header, csv_rows
from envs.data.parquet_rows import parquet_columns, parquet_rows
from envs.data.rows import DatasetError, UnusableRow, number_of, shortened

DELIMITERS = (",", "\t", ";", "|")
TEXTS, NUMBERS, NESTED = ("prompt", "answer", "answer_kind"), ("fps", "gt_span_start", "gt_span_end"), ("evidence",)
KEYS = (*TEXTS, *NUMBERS, *NESTED, "video", "conversations", "gemini_suggested_fps")
_TASK, _TRACE = ("video", "prompt", "answer"), ("video", "conversations")
_NO_NUMBER = frozenset(("", "nan", "na", "n/a", "null", "none"))  # how a missing number is written, in small letters


def csv_table(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[int, object]]:
    """Rows of a CSV file; the delimiter is the one that gives the columns: a comma, a tab, a semicolon or a bar.

    Raises:
        DatasetError: the file has not the columns, or cannot be read.
    """
    headers = {delimiter: csv_header(path, delimiter) for delimiter in DELIMITERS}
    needed = set(columns.values()) or set(_TASK)
    delimiter = max(DELIMITERS, key=lambda each: (len(needed & set(headers[each])), len(headers[each])))
    yield from _renamed(csv_rows(path, delimiter, trimmed=True), _places(path, headers[delimiter], columns))


def parquet_table(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[int, object]]:
    """Rows of a Parquet file, each with its number in the place of a line.

    Raises:
        DatasetError: the file has not the columns, or cannot be read.
    """
    places = _places(path, parquet_columns(path), columns)
    yield from _renamed(parquet_rows(path, tuple(places.values())), places)


def has_conversations(columns: Mapping[str, str]) -> bool:
    """Whether a table's rows are supervised traces: it is named which column has the conversations."""
    return "conversations" in columns


def _places(path: Path, header: Sequence[str], columns: Mapping[str, str]) -> dict[str, str]:
    """The column of each value."""
    for key, name in columns.items():
        if key not in KEYS:
            raise DatasetError(f"{path}: columns.{key}: {_unknown('value of a row', key, KEYS)}")
        if name not in header:
            raise DatasetError(f"{path}: columns.{key}: {_unknown('column', name, header)}")
    places = {key: key for key in KEYS if key in header and key not in columns} | dict(columns)
    for key in _TRACE if has_conversations(columns) else _TASK:
        if key not in places:
            missing = _unknown("column", key, header)
            raise DatasetError(f"{path}: {missing}; say which one it is: columns: {{{key}: NAME}}")
    return places


def _unknown(what: str, name: str, there: Iterable[str]) -> str:
    known = [each for each in there if each]
    close = difflib.get_close_matches(name[:100], [each for each in known if len(each) <= 100], n=1, cutoff=0.6)
    meant = f"; did you mean {shortened(close[0])}?" if close else ""
    named = ", ".join(map(shortened, known[:12])) + (f" and {len(known) - 12} more" if len(known) > 12 else "")
    return f"there is no {what} {shortened(name)}{meant}; there are {named or 'none'}"


def _renamed(rows: Iterable[tuple[int, object]], places: Mapping[str, str]) -> Iterator[tuple[int, object]]:
    taken = {*places, *places.values()}
    for line, row in rows:
        if isinstance(row, UnusableRow):
            yield line, row
            continue
        known = {key: _MEANINGS.get(key, _text)(row[name]) for key, name in places.items()}
        yield line, known | {name: cell for name, cell in row.items() if name not in taken}


def _text(cell: object) -> object:
    """A text; numbers as they would be written. An empty cell is none."""
    if isinstance(cell, bytes):  # text, as some writers of Parquet store it
        try:
            return cell.decode()
        except UnicodeDecodeError:
            return cell
    if isinstance(cell, int | float | Decimal) and not isinstance(cell, bool) and cell == cell:  # not NaN
        return str(cell)
    return None if cell == "" or cell != cell else cell


def _number(cell: object) -> object:
    """A number, also where it is written as text; NaN and the usual words for it are none."""
    if isinstance(cell, Decimal):
        return float(cell)
    if isinstance(cell, str):
        return None if cell.strip().lower() in _NO_NUMBER else number_of(cell)
    return None if cell != cell else cell


def _nested(cell: object) -> object:
    """A list, also where it is written as JSON."""
    if not isinstance(cell, str):
        return cell
    if not cell.strip():
        return None
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return cell  # whoever wants a list says what it got


def _video(cell: object) -> object:
    """A path, also as the part of a record of media that says where the file lies."""
    if isinstance(cell, dict) and set(cell) <= {"path", "bytes"}:
        return cell.get("path")
    return _nested(cell) if isinstance(cell, str) and cell.startswith("[") else _text(cell)


_MEANINGS: Mapping[str, Callable[[object], object]] = {
    **dict.fromkeys((*NUMBERS, "gemini_suggested_fps"), _number),
    **dict.fromkeys((*NESTED, "conversations"), _nested),
    "video": _video,
}
