"""Rows of CSV files, each with the line where it starts."""

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.data.csv_rows import csv_header, csv_rows
from envs.data.rows import DatasetError, UnusableRow


def test_a_row_has_the_line_where_it_starts(file):
    path = file('\ufeffid,text\n1,one\n2,"two\nlines, and a comma"\n\n3,"a ""word"""\n')
    assert list(csv_rows(path)) == [
        (2, {"id": "1", "text": "one"}),
        (3, {"id": "2", "text": "two\nlines, and a comma"}),
        (6, {"id": "3", "text": 'a "word"'}),
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_line_ends_and_encodings_of_spreadsheets_are_read(file, end, encoding):
    content = end.join(["id\ttext", "1\tü\u2028", '2\t"x\ty"', ""]).encode(encoding)
    expected = [(2, {"id": "1", "text": "ü\u2028"}), (3, {"id": "2", "text": "x\ty"})]
    assert list(csv_rows(file(content), "\t")) == expected
    assert list(csv_rows(file(gzip.compress(content)), "\t")) == expected


@pytest.mark.parametrize("content", ["", "id,text\n", "\n\n", "id,text\n,\n , \n"])
def test_a_file_without_rows_has_none(file, content):
    assert list(csv_rows(file(content))) == []


def test_a_row_that_is_too_short_lacks_values_and_one_too_long_is_told(file):
    short, long, padded = (row for _, row in csv_rows(file("id,text\n1\n2,x,y\n3,x,,\n")))
    assert (short, padded) == ({"id": "1", "text": None}, {"id": "3", "text": "x"})
    assert str(long) == "3 cells for 2 columns; is a cell with ',' in it not quoted?"


def test_a_column_without_a_name_is_left_out(file):  # the index that pandas writes
    assert list(csv_rows(file(",id, text\n0,1,x\n"))) == [(2, {"id": "1", "text": "x"})]


def test_blanks_after_a_delimiter_are_left_out_where_that_is_asked_for(file):
    path = file('id, text\n1, "a, b"\n')
    assert list(csv_rows(path, trimmed=True)) == [(2, {"id": "1", "text": "a, b"})]


def test_a_name_that_stands_twice_is_refused(file):
    with pytest.raises(DatasetError, match=r"rows:2: the column 'text' stands twice"):
        list(csv_rows(file("\ntext,id,text\n1,2,3\n")))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"id,text\n1,x\n2,\xff\n3,y\n", "not UTF-8 text"),
        (b'id,text\n1,x\n2,"open\n3,y\n', "a quote that opens in this row is never closed"),
        (b"id,text\n1,x\n2," + b"x" * 200_000 + b"\n3,y\n", "a cell of more than 131,072 characters"),
    ],
)
def test_a_row_that_cannot_be_told_apart_is_reported_where_it_starts(file, content, reason):
    (_, first), (line, broken), *others = csv_rows(file(content))
    assert (first, line) == ({"id": "1", "text": "x"}, 3) and reason in str(broken)
    assert others == ([(4, {"id": "3", "text": "y"})] if "UTF-8" in reason else [])


def test_names_that_cannot_be_read_are_refused(file):
    with pytest.raises(DatasetError, match=r"rows:1: the names of the columns cannot be read: not UTF-8"):
        csv_header(file(b"id,\xff\n1,2\n"), ",")


@given(content=st.binary(max_size=100) | st.text('a,"\n\r\t;', max_size=60).map(str.encode))
def test_no_bytes_raise_anything_else(content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "bytes.csv"
    path.write_bytes(content)
    try:
        assert all(isinstance(row, dict | UnusableRow) for _, row in csv_rows(path))
    except DatasetError as error:
        assert str(path) in str(error)
