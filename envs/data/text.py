"""From the bytes of an annotation file to its text: compression, encodings and line ends.

Text is UTF-8, or UTF-16 or UTF-32 where a byte order mark or its zero bytes say so; gzip is unpacked. Lines end in LF,
CRLF or CR, as every editor counts them; what else Unicode calls a line end (U+2028, U+0085) is part of a line.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import itertools
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from envs.data.rows import DatasetError, UnusableRow

LONGEST_LINE = 16 * 2**20  # bytes; a longer one is no row, and is not kept in memory to find that out
LARGEST_FILE = 2**31  # bytes, of the kinds that are read as a whole
LINE_END = re.compile(r"\r\n|\n|\r")
_BYTES_BEYOND_UTF8 = re.compile("[\udc80-\udcff]")  # what "surrogateescape" makes of them
_CHUNK = 2**20  # bytes read at a time
_MARKS = (  # byte order marks, the longer first: UTF-32's begins with UTF-16's
    *((codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"), (codecs.BOM_UTF8, "utf-8")),
    *((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")),
)
_WITHOUT_MARK = ((rb"[^\0]\0[^\0]\0", "utf-16-le"), (rb"\0[^\0]\0[^\0]", "utf-16-be"))
_GZIP = b"\x1f\x8b"
_OTHER_KINDS = (  # how a file begins that is no text; what it is, and what to do
    (rb"PK\x03\x04", "a ZIP archive or an Excel workbook", "unpack it, or save the sheet as CSV (UTF-8)"),
    (rb"PAR1[\x00-\x1f]", "a Parquet file", "read it with format: parquet"),
    (rb"ARROW1\0\0|\xff\xff\xff\xff", "an Arrow file", "write it as Parquet, and read it with format: parquet"),
    (rb"\x28\xb5\x2f\xfd", "Zstandard data", "unpack it: zstd -d FILE"),
    (rb"BZh[1-9]1AY&SY", "bzip2 data", "unpack it: bunzip2 FILE"),
    (rb"\xfd7zXZ\0", "xz data", "unpack it: unxz FILE"),
    (rb"SQLite format 3\0", "an SQLite database", "export the table as CSV"),
    (rb"\0...ftyp|\x1a\x45\xdf\xa3|RIFF....AVI ", "a video", "name the annotation file"),
)


def text_lines(path: Path) -> Iterator[tuple[int, str | UnusableRow]]:
    """Lines that are not blank, stripped, each with its number.

    Raises:
        DatasetError: the file cannot be read, or is of a kind that holds no text.
    """
    line = 0
    try:
        for line, raw in bounded_lines(path):
            if raw is None:
                yield line, UnusableRow(f"the line is longer than {LONGEST_LINE:,} bytes")
                continue
            try:
                text = raw.decode("utf-8").strip().removeprefix("\ufeff")  # files joined end to end keep their marks
            except UnicodeDecodeError as error:
                yield line, not_utf8(error.start)
                continue
            if text:
                yield line, text
    except UnusableRow as error:
        yield line + 1, error


def bounded_lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Every line with its number and its end, as UTF-8 is meant to be; None in place of one that is too long.

    Raises:
        DatasetError: as `text_lines`.
        UnusableRow: what is packed or encoded breaks off.
    """
    rest, line, too_long = b"", 1, False
    for chunk in _chunks(path):
        pieces = (rest + chunk).splitlines(keepends=True)  # of bytes: at LF, CRLF and CR only
        rest = b"" if pieces[-1].endswith(b"\n") else pieces.pop()  # a CR may be half of a CRLF
        for piece in pieces:
            yield line, None if too_long or len(piece) > LONGEST_LINE else piece
            line, too_long = line + 1, False
        if len(rest) > LONGEST_LINE:
            rest, too_long = rest[-1:], True
    if rest:
        yield line, None if too_long else rest


def whole_text(path: Path) -> tuple[str, UnusableRow | None]:
    """All of a file's text, bytes beyond UTF-8 as `beyond_utf8` finds them; and why it breaks off, if it does.

    Raises:
        DatasetError: as `text_lines`; or it is too large to be held in memory.
    """
    content, broken = bytearray(), None
    try:
        for chunk in _chunks(path):
            content += chunk
            if len(content) > LARGEST_FILE:
                raise DatasetError(
                    f"{path}: larger than {LARGEST_FILE:,} bytes; cut it into several, or use JSON lines"
                )
    except UnusableRow as error:
        broken = error
    return content.decode("utf-8", "surrogateescape"), broken


def beyond_utf8(text: str) -> UnusableRow | None:
    """Why a piece of text cannot be used, if its bytes are not UTF-8."""
    found = None if text.isascii() else _BYTES_BEYOND_UTF8.search(text)
    return not_utf8(found.start()) if found else None


def not_utf8(place: int) -> UnusableRow:
    """The reason of a row whose bytes are of another encoding."""
    return UnusableRow(f"not UTF-8 text from its character {place + 1} on; save the file as UTF-8")


def beginning(path: Path) -> str:
    """The first LONGEST_LINE bytes of a file's text or a little more, without the blanks before it.

    Raises:
        DatasetError: as `text_lines`.
    """
    content = bytearray()
    with contextlib.suppress(UnusableRow):  # packed data that breaks off: whoever reads on says so
        for chunk in _chunks(path):
            content += chunk if content else chunk.lstrip()
            if len(content) >= LONGEST_LINE:
                break
    return content.decode("utf-8", "surrogateescape")


def file_error(path: Path, error: OSError) -> DatasetError:
    """An annotation file that cannot be opened or read."""
    return DatasetError(f"{path}: cannot be read: {error.strerror or 'input/output error'}")


def _chunks(path: Path) -> Iterator[bytes]:
    """The content, unpacked, as UTF-8 without a byte order mark; no piece is empty."""
    try:
        with path.open("rb") as file:
            stored = gzip.GzipFile(fileobj=file) if _begins_as_gzip(file) else file
            head = _read(stored)
            _refuse_other_kind(path, head)
            mark, encoding = _encoding(head)
            content = itertools.chain((head[len(mark) :],), iter(lambda: _read(stored), b""))
            yield from filter(None, content if encoding == "utf-8" else _as_utf8(filter(None, content), encoding))
    except OSError as error:
        raise file_error(path, error) from error


def _begins_as_gzip(file: BinaryIO) -> bool:
    head = file.read(len(_GZIP))
    file.seek(0)
    return head == _GZIP


def _read(file: BinaryIO) -> bytes:
    """The next piece: what is there at once, so that nothing is lost where packed data breaks off behind it."""
    try:
        return file.read1(_CHUNK)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UnusableRow(f"the gzip data is damaged from here on ({error}); pack or download it again") from error


def _refuse_other_kind(path: Path, head: bytes) -> None:
    for begins, kind, remedy in _OTHER_KINDS:
        if re.match(begins, head, re.DOTALL):
            raise DatasetError(f"{path}: holds {kind}, not text; {remedy}")


def _encoding(head: bytes) -> tuple[bytes, str]:
    """The byte order mark that text begins with, and its encoding."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return mark, encoding
    return b"", next((name for begins, name in _WITHOUT_MARK if re.match(begins, head, re.DOTALL)), "utf-8")


def _as_utf8(content: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """Text of another encoding, piece by piece."""
    decoder = codecs.getincrementaldecoder(encoding)()
    for piece in itertools.chain(content, (b"",)):
        try:
            text = decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            yield error.object[: error.start].decode(encoding, "ignore").encode()
            name = encoding[:6].upper()
            raise UnusableRow(f"not {name} text from here on, as its first bytes say; save the file as UTF-8") from None
        yield text.encode()
