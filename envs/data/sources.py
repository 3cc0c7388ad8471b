"""Where rows come from: a format of ours or a table's columns; an annotation file; its videos."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from envs.data.formats import FORMATS, RowFormat
from envs.data.rows import DatasetError
from envs.data.tables import csv_table, has_conversations, parquet_table

TABLES: Mapping[str, Callable[[Path, Mapping[str, str]], Iterator[tuple[int, object]]]] = {
    "csv": csv_table,
    "parquet": parquet_table,
}
BUILTIN = (*FORMATS, *TABLES)
NOTHING: Mapping[str, str] = MappingProxyType({})


class Source(NamedTuple):
    """An annotation file, how it is read, and where its videos lie."""

    format: str  # one of BUILTIN
    path: str | Path
    video_root: str | Path = ""  # every video must lie under it; empty: the folder of the annotation file
    columns: Mapping[str, str] = NOTHING  # of a table: value of a row -> the column that has it


def locate_source(source: Source) -> tuple[RowFormat, Path, Path]:
    """How rows are read, from which file, and the folder their videos must lie under.

    Raises:
        DatasetError: there is no such format, reader, file or folder, or columns that the format has not.
    """
    row_format = _row_format(source.format, source.columns)
    if str(source.path) in ("", "."):
        raise DatasetError("path is empty; name the annotation file")
    path = Path(source.path)
    if path.is_dir():
        raise DatasetError(f"{path}: is a folder; name the annotation file in it")
    if not path.is_file():
        raise DatasetError(f"{path}: no such annotation file")
    root = Path(source.video_root) if str(source.video_root) else path.parent
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder of videos (for {path})")
    return row_format, path, root


def has_traces(source: Source) -> bool:
    """Whether a source's rows are supervised traces, with replies to learn from, and not only tasks."""
    if source.format in FORMATS:
        return FORMATS[source.format].trace is not None
    return source.format in TABLES and has_conversations(source.columns)


def _row_format(name: str, columns: Mapping[str, str]) -> RowFormat:
    if columns and name not in TABLES:
        raise DatasetError(f"format {name!r} has no columns to name; `columns` is for {' and '.join(TABLES)}")
    if name in FORMATS:
        return FORMATS[name]
    task, trace = FORMATS["dm_rl"].task, FORMATS["dm_cot"].trace
    if name in TABLES:
        rows = partial(TABLES[name], columns=columns)
        return RowFormat(rows, *((FORMATS["dm_cot"].task, trace) if has_conversations(columns) else (task, None)))
    close = difflib.get_close_matches(name, BUILTIN, n=1, cutoff=0.5)
    meant = f"; did you mean {close[0]!r}?" if close else ""
    raise DatasetError(f"unknown data format {name!r}{meant}; known: {', '.join(sorted(BUILTIN))}")
