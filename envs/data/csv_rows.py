"""Rows of CSV files: mappings from the names in the first line, each with the line where it starts."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from envs.data.rows import DatasetError, UnusableRow, shortened
from envs.data.text import LONGEST_LINE, beyond_utf8, bounded_lines


def csv_rows(path: Path, delimiter: str = ",", *, trimmed: bool = False) -> Iterator[tuple[int, object]]:
    """Rows as mappings; every value is a text, None where a row ends before its column. Empty rows are none.

    Args:
        trimmed: blanks after a delimiter are no part of the cell behind it.
    Raises:
        DatasetError: the file cannot be read, holds no text, or a name stands twice in its first line.
    """
    cells = _cells(path, delimiter, trimmed)
    header = _header(path, cells)
    for line, row in cells:
        if isinstance(row, UnusableRow):
            yield line, row
        elif len(row) > len(header) and any(row[len(header) :]):
            reason = f"{len(row)} cells for {len(header)} columns; is a cell with {delimiter!r} in it not quoted?"
            yield line, UnusableRow(reason)
        else:
            known = {name: cell for name, cell in zip(header, row, strict=False) if name}
            yield line, known | dict.fromkeys(filter(None, header[len(row) :]))


def csv_header(path: Path, delimiter: str) -> list[str]:
    """The names of the columns, as they would be with this delimiter; empty for a file without rows.

    Raises:
        DatasetError: as `csv_rows`.
    """
    return _header(path, _cells(path, delimiter, trimmed=True))


def _header(path: Path, cells: Iterator[tuple[int, list[str] | UnusableRow]]) -> list[str]:
    line, names = next(cells, (1, []))
    if isinstance(names, UnusableRow):
        raise DatasetError(f"{path}:{line}: the names of the columns cannot be read: {names}")
    names = [name.strip() for name in names]
    repeated = next((name for i, name in enumerate(names) if name and name in names[:i]), None)
    if repeated is not None:
        raise DatasetError(f"{path}:{line}: the column {shortened(repeated)} stands twice; rename one of the two")
    return names


def _cells(path: Path, delimiter: str, trimmed: bool) -> Iterator[tuple[int, list[str] | UnusableRow]]:
    """Rows as lists of cells; what follows a row that cannot be told apart is one bad row with it."""
    fed = 0  # lines the row in hand has taken

    def lines() -> Iterator[str]:
        nonlocal fed
        for _, raw in bounded_lines(path):
            if raw is None:
                raise UnusableRow(f"a line is longer than {LONGEST_LINE:,} bytes")
            fed += 1
            yield raw.decode("utf-8", "surrogateescape")
        if fed:
            raise UnusableRow("a quote that opens in this row is never closed")

    reader = csv.reader(lines(), delimiter=delimiter, skipinitialspace=trimmed)
    while True:
        line, fed = reader.line_num + 1, 0
        try:
            row = next(reader)
        except StopIteration:
            return
        except (csv.Error, UnusableRow) as error:
            too_long = f"a cell of more than {csv.field_size_limit():,} characters; is a quote never closed?"
            yield line, UnusableRow(f"not CSV from here on: {too_long if isinstance(error, csv.Error) else error}")
            return
        if any(cell.strip() for cell in row):
            yield line, beyond_utf8("".join(row)) or row
