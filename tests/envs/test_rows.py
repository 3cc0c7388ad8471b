"""Annotation files to rows with their lines, and videos by their names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.rows import DatasetError, UnusableRow, csv_rows, json_array, json_object, shortened, video_file


@pytest.fixture
def file(tmp_path):
    def make(content):
        path = tmp_path / "rows"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


def test_a_csv_row_has_the_line_where_it_starts(file):
    path = file('\ufeffid,text\n1,one\n2,"two\nlines, and a comma"\n\n3,"a ""word"""\n')
    assert list(csv_rows(path)) == [
        (2, {"id": "1", "text": "one"}),
        (3, {"id": "2", "text": "two\nlines, and a comma"}),
        (6, {"id": "3", "text": 'a "word"'}),
    ]


@pytest.mark.parametrize("content", ["", "id,text\n", "\n\n"])
def test_a_csv_file_without_rows_has_none(file, content):
    assert list(csv_rows(file(content))) == []


def test_a_csv_row_that_is_too_short_lacks_values_and_one_too_long_has_more(file):
    short, long = (row for _, row in csv_rows(file("id,text\n1\n2,x,y\n")))
    assert short == {"id": "1", "text": None}
    assert long == {"id": "2", "text": "x", None: ["y"]}


@pytest.mark.parametrize("content", [b"id,text\n1,\xff\n", b"id,text\n1," + b"x" * 200_000 + b"\n"])
def test_what_is_no_csv_is_one_bad_row(file, content):
    ((_, value),) = csv_rows(file(content))
    assert isinstance(value, UnusableRow)


@given(content=st.binary(max_size=200))
def test_no_bytes_break_a_reader(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows"
    path.write_bytes(content)
    list(csv_rows(path)), list(json_array(path))


@pytest.mark.parametrize("content", ["", "[]", "7", "{", "{} {}", "[" * 100_000, b"\xff"])
def test_what_is_no_object_is_refused_with_the_file(file, content):
    with pytest.raises(DatasetError, match="rows"):
        json_object(file(content))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="none"):
        json_object(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a", "a.mp4"),
        ("a.mp4", "a.mp4"),
        ("b", "deep/b.webm"),
        ("c", "deep/c.MP4"),
        ("2I9_510.0_660.0", "2I9_510.0_660.0.mp4"),  # what looks like a suffix is part of the name
        ("none", "none.mp4"),  # what it would be called
        ("none.mkv", "none.mkv"),
        ("x" * 5000, "x" * 5000 + ".mp4"),
        ("a\0b", "a\0b.mp4"),
    ],
)
def test_a_video_is_found_with_or_without_its_suffix_in_the_folders_given(tmp_path, name, found):
    (tmp_path / "deep").mkdir()
    for path in ("a.mp4", "deep/a.mp4", "deep/b.webm", "deep/c.MP4", "2I9_510.0_660.0.mp4"):
        (tmp_path / path).touch()
    assert video_file(name, tmp_path, ("", "deep")) == found


def test_an_error_shows_no_more_of_a_value_than_helps():
    assert shortened(10**400) == "a huge integer"
    assert shortened("x" * 100) == f"'{'x' * 59}…"
