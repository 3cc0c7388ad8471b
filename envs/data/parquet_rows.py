"""Rows of Parquet files, a few at a time. The one place that knows pyarrow, which is imported when a file is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs.data.rows import DatasetError, UnusableRow, shortened

if TYPE_CHECKING:
    import pyarrow

_ROWS_AT_A_TIME = 256
_NO_VALUE = (ValueError, OverflowError, ArithmeticError)
_PATH_OF_MEDIA = "path"  # of the structs {bytes, path} in which data sets keep media


def parquet_columns(path: Path) -> list[str]:
    """The names of a file's columns.

    Raises:
        DatasetError: the file cannot be read as Parquet, or a name stands twice.
    """
    with _opened(path) as file:
        return _names(path, file.schema_arrow)


def parquet_rows(path: Path, needed: Sequence[str] = ()) -> Iterator[tuple[int, object]]:
    """Rows as mappings, each with its number from 1; columns of binary data are left out.

    Args:
        needed: columns that are read whatever they hold; of media, only where it lies is read.
    Raises:
        DatasetError: as `parquet_columns`.
    """
    import pyarrow

    row = 0
    with _opened(path) as file:
        _names(path, file.schema_arrow)
        wanted = [name for field in file.schema_arrow for name in _wanted(field, needed)]
        try:
            for batch in file.iter_batches(_ROWS_AT_A_TIME, columns=wanted, use_threads=False):
                for value in _values(batch):
                    row += 1
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


def _wanted(field: pyarrow.Field, needed: Sequence[str]) -> list[str]:
    """The column or the part of it that is read."""
    if not _holds_binary(field.type):
        return [field.name]
    if _is_media(field.type):
        return [f"{field.name}.{_PATH_OF_MEDIA}"]
    return [field.name] if field.name in needed else []


def _is_media(kind: pyarrow.DataType) -> bool:
    import pyarrow

    return pyarrow.types.is_struct(kind) and kind.get_field_index(_PATH_OF_MEDIA) >= 0


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
