"""Rows of Parquet files, a few at a time. The one place that knows pyarrow, which is imported when a file is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs.data.rows import DatasetError, UnusableRow, shortened

if TYPE_CHECKING:
    import pyarrow

_ROWS_AT_A_TIME = 256
_NO_VALUE = (ValueError, OverflowError, ArithmeticError)
_PATH, _BYTES = "path", "bytes"  # of the structs in which data sets keep media
_MOST_READ = 2**30  # bytes of the column's part of a row group: what is read through to find one row's
_PIXELS = ("image", "images")  # columns of plain binary data that are media


@dataclass(frozen=True, slots=True)
class StoredBytes:
    """A medium whose bytes stand in a row of a Parquet file. They are read when they are needed."""

    file: str
    row: int  # from 1, as rows are counted
    column: str
    place: int | None = None  # from 0, in a list of media; None: the cell is one medium


def parquet_columns(path: Path) -> list[str]:
    """The names of a file's columns.

    Raises:
        DatasetError: the file cannot be read as Parquet, or a name stands twice.
    """
    with _opened(path) as file:
        return _names(path, file.schema_arrow)


def parquet_rows(path: Path, needed: Sequence[str] = (), *, stored: bool = False) -> Iterator[tuple[int, object]]:
    """Rows as mappings, each with its number from 1; columns of binary data are left out.

    Args:
        needed: columns that are read whatever they hold; of media, only where it lies is read.
        stored: media are given as {path, bytes}, the bytes as `StoredBytes` where the row holds any. None are read.
    Raises:
        DatasetError: as `parquet_columns`.
    """
    import pyarrow

    row = 0
    with _opened(path) as file:
        schema = file.schema_arrow
        _names(path, schema)
        leaves = _leaves(file)
        wanted = [name for field in schema for name in _wanted(field, needed, leaves if stored else ())]
        media = [field for field in schema if _is_media(field.type) or _is_pixels(field)] if stored else []
        try:
            for group in range(file.num_row_groups):
                empty = {field.name: _rows_without(file, group, row, _bytes_in(field, leaves)) for field in media}
                for batch in file.iter_batches(_ROWS_AT_A_TIME, [group], wanted, use_threads=False):
                    for value in _values(batch):
                        row += 1
                        if isinstance(value, dict):
                            there = [field for field in media if row not in empty[field.name]]
                            value |= _media(path, row, value, there)
                        yield row, value
        except (pyarrow.ArrowException, OSError) as error:
            yield row + 1, UnusableRow(f"not Parquet from here on: {_first_line(error)}")


def _opened(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read as Parquet: {_first_line(error)}") from error


def _names(path: Path, schema: pyarrow.Schema) -> list[str]:
    repeated = next((name for i, name in enumerate(schema.names) if name in schema.names[:i]), None)
    if repeated is not None:
        raise DatasetError(f"{path}: the column {shortened(repeated)} stands twice; rename one of the two")
    return list(schema.names)


def read_stored(stored: StoredBytes) -> bytes:
    """The bytes of a medium: its row group is read through, a few rows at a time, up to its row.

    Raises:
        UnusableRow: there are none, or the file has changed or cannot be read.
    """
    import pyarrow

    where = f"{stored.file}:{stored.row}: {stored.column}"
    try:
        with _opened(Path(stored.file)) as file:
            group, first = _group_of(file.metadata, stored.row)
            _require_small(where, file.metadata.row_group(group), stored.column)
            field = file.schema_arrow.field(stored.column)
            for batch in file.iter_batches(8, [group], [_bytes_in(field, _leaves(file))], use_threads=False):
                if first + batch.num_rows >= stored.row:
                    return _content(where, batch.column(0)[stored.row - first - 1].as_py(), stored.place)
                first += batch.num_rows
    except (pyarrow.ArrowException, OSError, KeyError, IndexError, DatasetError) as error:
        raise UnusableRow(f"{where} cannot be read: {_first_line(error)}; fetch the file again") from error
    raise UnusableRow(f"{where}: the file has no such row any more; fetch it again")


def _group_of(metadata: Any, row: int) -> tuple[int, int]:
    """The row group of a row, and how many rows stand before the group."""
    first = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if first + rows >= row:
            return group, first
        first += rows
    raise IndexError(f"there are {first} rows")


def _require_small(where: str, group: Any, column: str) -> None:
    chunks = [group.column(number) for number in range(group.num_columns)]
    size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)
    if size > _MOST_READ:
        raise UnusableRow(
            f"{where}: its row group of {group.num_rows:,} rows holds {size:,} bytes, at most {_MOST_READ:,} are read "
            "through for one medium; write the table anew with row_group_size=100"
        )


def _content(where: str, cell: Any, place: int | None) -> bytes:
    if place is not None:
        cell = cell[place]
    content = cell.get(_BYTES) if isinstance(cell, dict) else cell
    if not content:
        raise UnusableRow(f"{where}: there are no bytes in this row")
    return content


def _leaves(file: Any) -> list[str]:
    """The columns as Parquet has them, parts of structs and lists by their dotted names."""
    return [file.schema.column(number).path for number in range(len(file.schema))]


def _bytes_in(field: pyarrow.Field, leaves: Sequence[str]) -> str:
    """The column in which the bytes of media stand; empty: in none."""
    if _is_pixels(field):
        return field.name
    return next((leaf for leaf in leaves if leaf.split(".")[0] == field.name and leaf.endswith(f".{_BYTES}")), "")


def _rows_without(file: Any, group: int, first: int, leaf: str) -> Set[int]:
    """The rows of a group whose media have no bytes: by the group's statistics, and only where these do not tell by
    what it holds.

    Args:
        first: rows that stand before the group.
    """
    told = file.metadata.row_group(group)
    rows = range(first + 1, first + told.num_rows + 1)
    if not leaf:
        return frozenset(rows)
    chunk = next(told.column(at) for at in range(told.num_columns) if told.column(at).path_in_schema == leaf)
    statistics = chunk.statistics
    if "." in leaf.removeprefix(f"{leaf.split('.')[0]}.") or statistics is None or not statistics.has_null_count:
        return frozenset()  # of lists the places, and what is not told: whoever reads the bytes finds out
    if statistics.null_count in (0, told.num_rows):
        return frozenset(rows if statistics.null_count else ())
    lacking, row = set(), first
    for batch in file.iter_batches(8, [group], [leaf], use_threads=False):
        for cell in batch.column(0):
            row += 1
            value = cell.as_py()
            if not (value.get(_BYTES) if isinstance(value, dict) else value):
                lacking.add(row)
    return lacking


def _wanted(field: pyarrow.Field, needed: Sequence[str], leaves: Sequence[str]) -> list[str]:
    """The columns, or the parts of them, that are read.

    Args:
        leaves: of the file, where lists of media are wanted, too.
    """
    if not _holds_binary(field.type):
        return [field.name]
    if _listed(field.type) is not None:
        named = [leaf for leaf in leaves if leaf.split(".")[0] == field.name and leaf.endswith(f".{_PATH}")]
        return named or [field.name] * (field.name in needed)
    if _has(field.type, _PATH):
        return [f"{field.name}.{_PATH}"]
    return [field.name] if field.name in needed else []


def _is_media(kind: pyarrow.DataType) -> bool:
    """Whether a column holds {bytes, path}, or lists of it."""
    listed = _listed(kind)
    kind = kind if listed is None else listed
    return _has(kind, _PATH) or _has(kind, _BYTES)


def _is_pixels(field: pyarrow.Field) -> bool:
    import pyarrow.types as types

    return field.name in _PIXELS and (types.is_binary(field.type) or types.is_large_binary(field.type))


def _listed(kind: pyarrow.DataType) -> pyarrow.DataType | None:
    import pyarrow.types as types

    return kind.value_type if types.is_list(kind) or types.is_large_list(kind) else None


def _has(kind: pyarrow.DataType, name: str) -> bool:
    import pyarrow.types as types

    return types.is_struct(kind) and kind.get_field_index(name) >= 0


def _media(path: Path, row: int, value: Mapping[str, object], fields: Sequence[pyarrow.Field]) -> dict[str, object]:
    """The media of a row as {path, bytes}, for each of its columns of media."""
    made: dict[str, object] = {}
    for field in fields:
        cell, listed = value.get(field.name), _listed(field.type)
        if listed is None:
            made[field.name] = _medium(cell, StoredBytes(str(path), row, field.name), field.type)
        elif isinstance(cell, list):
            made[field.name] = [
                _medium(one, StoredBytes(str(path), row, field.name, place), listed) for place, one in enumerate(cell)
            ]
    return made


def _medium(cell: object, stored: StoredBytes, kind: pyarrow.DataType) -> dict[str, object]:
    import pyarrow.types as types

    named = cell.get(_PATH) if isinstance(cell, dict) else None
    has_bytes = _has(kind, _BYTES) or not types.is_struct(kind)
    return {_PATH: named, _BYTES: stored if has_bytes else None}


def _holds_binary(kind: pyarrow.DataType) -> bool:
    import pyarrow.types as types

    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return True
    return any(_holds_binary(kind.field(i).type) for i in range(kind.num_fields))


def _values(batch: pyarrow.RecordBatch) -> list[object]:
    """Its rows; a cell that cannot be read (bytes that are no text, a time that no clock has) costs its row."""
    try:
        return batch.to_pylist()
    except _NO_VALUE as error:
        if batch.num_rows == 1:
            return [UnusableRow(f"a cell cannot be read: {_first_line(error)}")]
    return [value for number in range(batch.num_rows) for value in _values(batch.slice(number, 1))]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "damaged data").splitlines()[0]
