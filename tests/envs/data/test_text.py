"""From the bytes of a file to its lines: encodings, packing and line ends."""

import codecs
import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.data.rows import DatasetError, UnusableRow
from envs.data.text import bounded_lines, text_lines, whole_text


def said(path):
    """Lines as (number, text), or (number, why not)."""
    return [(line, str(value)) for line, value in text_lines(path)]


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ("a\nb", [(1, "a"), (2, "b")]),
        ("a\r\nb\r\n", [(1, "a"), (2, "b")]),
        ("a\rb\r", [(1, "a"), (2, "b")]),  # classic Mac OS; "text (Macintosh)" of spreadsheets
        ("a\rb\r\nc\n\nd\r\re", [(1, "a"), (2, "b"), (3, "c"), (5, "d"), (7, "e")]),
        ("a\n\rb", [(1, "a"), (3, "b")]),  # an LF, then a CR: an empty line between them
        ("a\u2028b\u0085c\x0bd\x0ce\x1cf\ng", [(1, "a\u2028b\u0085c\x0bd\x0ce\x1cf"), (2, "g")]),
        ("\ufeffa\n\ufeffb", [(1, "a"), (2, "b")]),  # two files joined
        ("\ufeff", []),
        ("", []),
        (" \t\n\r\n  ", []),
    ],
)
def test_lines_end_in_lf_crlf_or_cr_and_in_nothing_else(file, content, lines):
    assert said(file(content)) == lines


@given(
    pieces=st.lists(st.sampled_from(["a", "b\u2028", "ü", "\r", "\n", "\r\n", " "]), max_size=30),
    size=st.integers(1, 5),
)
def test_lines_are_those_of_universal_newlines_however_the_file_is_read(pieces, size, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "universal"
    path.write_bytes("".join(pieces).encode())
    with path.open(newline=None, encoding="utf-8") as opened:
        expected = [line.rstrip("\n") for line in opened]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("envs.data.text._CHUNK", size)
        got = [raw.decode().rstrip("\r\n") for _, raw in bounded_lines(path)]
    assert got == expected


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_text_with_a_byte_order_mark_is_read_in_its_encoding(file, encoding, packed):
    content = "\ufeffprompt ü\r\n日本 \U0001f3ac\r\n".encode(encoding)
    path = file(gzip.compress(content) if packed else content)
    assert said(path) == [(1, "prompt ü"), (2, "日本 \U0001f3ac")]
    assert whole_text(path) == ("prompt ü\r\n日本 \U0001f3ac\r\n", None)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_two_bytes_a_character_are_known_without_a_mark(file, encoding):
    assert said(file('{"a": 1}\nü'.encode(encoding))) == [(1, '{"a": 1}'), (2, "ü")]


def test_another_encoding_costs_the_lines_that_need_it(file):
    lines = said(file("a\ncaf\u00e9\nb".encode("latin-1")))
    assert lines == [(1, "a"), (2, "not UTF-8 text from its character 4 on; save the file as UTF-8"), (3, "b")]


def test_text_that_stops_being_utf_16_keeps_what_stands_before(file):
    content = codecs.BOM_UTF16_BE + "a\nb\n".encode("utf-16-be") + b"\xd8\x00\x00a\x00"
    *before, (line, reason) = said(file(content))
    assert (before, line) == ([(1, "a"), (2, "b")], 3) and "not UTF-16 text from here on" in reason


@pytest.mark.parametrize(
    "cut", [lambda data: data[:-9], lambda data: data + b"garbage", lambda data: data[:400] + b"!" * 20]
)
def test_gzip_data_that_breaks_off_keeps_the_lines_before(file, cut):
    numbers = "".join(f"{number * 7919 % 100_003}\n" for number in range(500))
    *before, (line, reason) = said(file(cut(gzip.compress(numbers.encode()))))
    assert all(text == str((number - 1) * 7919 % 100_003) for number, text in before)
    assert line == len(before) + 1 and "gzip data is damaged" in reason


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"PK\x03\x04rest", "Excel workbook.*save the sheet as CSV"),
        (b"PAR1\x15\x04", "Parquet.*format: parquet"),
        (b"\x28\xb5\x2f\xfdrest", "zstd -d"),
        (b"BZh91AY&SY", "bunzip2"),
        (b"\xfd7zXZ\0", "unxz"),
        (b"SQLite format 3\0", "SQLite"),
        (b"\0\0\0\x20ftypisom", "a video.*name the annotation file"),
        (gzip.compress(b"PK\x03\x04rest", mtime=0), "Excel workbook"),
    ],
)
def test_a_file_that_holds_no_text_is_refused_by_what_it_holds(file, content, kind):
    with pytest.raises(DatasetError, match=rf"rows: holds .*{kind}"):
        said(file(content))


def test_a_file_that_cannot_be_opened_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(DatasetError, match="cannot be read: Is a directory"):
        said(tmp_path)


def test_a_line_that_is_too_long_is_no_line(file, monkeypatch):
    monkeypatch.setattr("envs.data.text.LONGEST_LINE", 10)
    monkeypatch.setattr("envs.data.text._CHUNK", 4)
    lines = said(file("a" * 10 + "\r\n" + "b" * 31 + "\rc\n" + "d" * 30))
    long = "the line is longer than 10 bytes"
    assert lines == [(1, long), (2, long), (3, "c"), (4, long)] or lines == [
        (1, "a" * 10),
        (2, long),
        (3, "c"),
        (4, long),
    ]


@given(content=st.binary(max_size=60), packed=st.booleans())
def test_no_bytes_raise_anything_else(content, packed, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "bytes"
    path.write_bytes(gzip.compress(content) if packed else content)
    try:
        assert all(isinstance(value, str | UnusableRow) for _, value in text_lines(path))
    except DatasetError as error:
        assert str(path) in str(error)
