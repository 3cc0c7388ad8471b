"""Where rows come from: a format of ours, a table's columns or a user's own reader; an annotation file; its videos."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from envs.data.formats import FORMATS, RowFormat
from envs.data.hub_copy import WHOLE, Part, files_of, snapshot_of
from envs.data.rows import DatasetError, UnusableRow, kind_of, plain
from envs.data.tables import csv_table, has_conversations, parquet_table
from rl.user_code.errors import UserCodeError, is_from_signal, message, place
from rl.user_code.loading import load_object
from rl.user_code.reference import CodeReference, parse_reference

TABLES: Mapping[str, Callable[[Path, Mapping[str, str]], Iterator[tuple[int, object]]]] = {
    "csv": csv_table,
    "parquet": parquet_table,
}
BUILTIN = (*FORMATS, *TABLES)
JSON = tuple(f"{suffix}{packed}" for suffix in (".jsonl", ".json", ".ndjson") for packed in ("", ".gz"))
SUFFIXES: Mapping[str, tuple[str, ...]] = {  # of the files of a repository that a format reads
    **{"charades_sta": (".txt",), "csv": (".csv", ".tsv", ".csv.gz", ".tsv.gz"), "parquet": (".parquet",)},
    **dict.fromkeys(("dm_rl", "dm_cot"), JSON),
    "conversations": (*JSON, ".parquet"),
}
ANY_SUFFIX = tuple(dict.fromkeys(suffix for known in SUFFIXES.values() for suffix in known))
NOTHING: Mapping[str, str] = MappingProxyType({})
_END = object()


class Source(NamedTuple):
    """An annotation file, how it is read, and where its videos lie."""

    format: str  # one of BUILTIN, or "path/file.py:reader"
    path: str | Path  # an annotation file, or the folder of a data set's repository
    video_root: str | Path = ""  # every video must lie under it; empty: the folder of the annotation file
    columns: Mapping[str, str] = NOTHING  # of a table: value of a row -> the column that has it
    part: Part = WHOLE  # of a repository


class Files(NamedTuple):
    """Annotation files that are read as one."""

    paths: tuple[Path, ...]
    root: Path  # every medium must lie under it
    home: Path | None  # of a repository its folder; None: one file

    def name(self, path: Path) -> str:
        """Of a file, without suffixes: what its rows' ids begin with."""
        if self.home is None:
            return path.stem
        return path.relative_to(self.home).as_posix().partition(".")[0]


def locate_source(source: Source) -> tuple[RowFormat, Files]:
    """How rows are read, and from which files.

    Raises:
        DatasetError: there is no such format, reader, file or folder, or columns that the format has not.
    """
    suffixes = SUFFIXES.get(source.format, ANY_SUFFIX)
    return _row_format(source.format, source.columns), locate_files(
        source.path, source.video_root, source.part, suffixes
    )


def locate_files(
    path: str | Path, media_root: str | Path, part: Part, suffixes: tuple[str, ...] = SUFFIXES["conversations"]
) -> Files:
    """An annotation file or the files of a repository's split, and the folder that their media must lie under: the
    file's own or the repository's, where none is named.

    Raises:
        DatasetError: there is no such file or folder, or part of a repository.
    """
    if str(path) in ("", "."):
        raise DatasetError("path is empty; name the annotation file, or the folder of a data set's repository")
    path = Path(path)
    if path.is_dir():
        home = snapshot_of(path)
        files, root = files_of(path, part, suffixes), home
    elif path.is_file():
        if part != WHOLE:
            named = "split" if part.split else "subset"
            raise DatasetError(f"{path}: is one file; `{named}` is for the folder of a data set's repository")
        home, files, root = None, (path,), path.parent
    else:
        raise DatasetError(f"{path}: no such annotation file")
    root = Path(media_root) if str(media_root) else root
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder of videos (for {path})")
    return Files(files, root, home)


def has_traces(source: Source) -> bool:
    """Whether a source's rows are supervised traces, with replies to learn from, and not only tasks.

    A user's reader says so with its first row.

    Raises:
        DatasetError: as `locate_source`, or the reader fails.
    """
    if source.format in FORMATS:
        return FORMATS[source.format].trace is not None
    if source.format in TABLES:
        return has_conversations(source.columns)
    row_format, files = locate_source(source)
    _, first = next(row_format.rows(files.paths[0]), (1, None))
    return isinstance(first, dict) and "conversations" in first


def _row_format(name: str, columns: Mapping[str, str]) -> RowFormat:
    if columns and name not in TABLES:
        raise DatasetError(f"format {name!r} has no columns to name; `columns` is for {' and '.join(TABLES)}")
    if name in FORMATS:
        return FORMATS[name]
    if name in TABLES:
        rows = partial(TABLES[name], columns=columns)
        base = FORMATS["dm_cot" if has_conversations(columns) else "dm_rl"]
        return replace(base, rows=rows)
    if (reference := parse_reference(name)) is not None:
        rows = partial(_rows_of_reader, name, _load_reader(name, reference))
        return RowFormat(rows, _task_of_any, FORMATS["dm_cot"].trace)
    close = difflib.get_close_matches(name, BUILTIN, n=1, cutoff=0.5)
    meant = f"; did you mean {close[0]!r}?" if close else ""
    raise DatasetError(
        f"unknown data format {name!r}{meant}; known: {', '.join(sorted(BUILTIN))}; your own: 'path/file.py:reader'"
    )


def _task_of_any(row: object, root: Path, task_id: str) -> Any:
    """A row of a user's reader has what `dm_rl` has, or the conversation of `dm_cot`."""
    is_trace = isinstance(row, dict) and "conversations" in row
    return FORMATS["dm_cot" if is_trace else "dm_rl"].task(row, root, task_id)


def _load_reader(name: str, reference: CodeReference) -> Callable[[Path], Iterable[object]]:
    try:
        reader = load_object(f"data format {name!r}", reference, "function")
    except UserCodeError as error:
        raise DatasetError(str(error)) from error
    if not callable(reader):
        raise DatasetError(f"data format {name!r}: expected a function reader(path), got {kind_of(reader)}")
    try:
        inspect.signature(reader).bind(Path())
    except TypeError as error:
        raise DatasetError(f"data format {name!r}: cannot be called as reader(path): {error}") from error
    except ValueError:
        pass  # some functions written in C do not tell theirs
    return reader


def _rows_of_reader(name: str, reader: Callable[[Path], Iterable[object]], path: Path) -> Iterator[tuple[int, object]]:
    """What a user's reader gives: mappings, or (line, mapping) pairs; without lines, rows are counted from 1."""
    row = 0
    try:
        with redirect_stdout(sys.stderr):  # what it prints is no answer of ours
            rows = reader(path)
        if not isinstance(rows, Iterable):
            raise DatasetError(f"data format {name!r}: a reader returns or yields rows, got {kind_of(rows)}")
        for row, given in enumerate(_quietly(iter(rows)), start=1):
            line, value = given if _has_line(given) else (row, given)
            yield line, _mapping(value)
    except (DatasetError, GeneratorExit):
        raise
    except BaseException as error:  # whatever a user's code raises, sys.exit included
        if is_from_signal(error):
            raise
        where = f"after {row} rows of {path}" if row else f"at the first row of {path}"
        raise DatasetError(f"data format {name!r}: {message(error)}{place(error)} ({where})") from error


def _quietly(rows: Iterator[object]) -> Iterator[object]:
    while True:
        with redirect_stdout(sys.stderr):
            given = next(rows, _END)
        if given is _END:
            return
        yield given


def _has_line(given: object) -> bool:
    if not isinstance(given, tuple) or len(given) != 2:
        return False
    return isinstance(given[0], int) and not isinstance(given[0], bool) and given[0] >= 1


def _mapping(value: object) -> object:
    if isinstance(value, UnusableRow):
        return value
    if not isinstance(value, Mapping):
        return UnusableRow(f"a reader gives each row as a mapping of values by their names, got {kind_of(value)}")
    return {str(key): plain(cell) for key, cell in value.items()}
