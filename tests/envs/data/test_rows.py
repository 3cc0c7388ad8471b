"""Annotation files to rows with their lines, and videos by their names."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.data.rows import DatasetError, UnusableRow, confine, csv_rows, json_array, json_object, shortened, video_file


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


@pytest.mark.parametrize(
    "name", ["a b.mp4", "'\"<b>&#%s$(x).mp4", "日本 ü.mp4", "-rf.mp4", "x" * 251 + ".mp4", "a/b/../../c.mp4"]
)
def test_a_video_may_have_any_name_that_fits_on_a_line(tmp_path, name):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / name).touch()
    assert confine(name, tmp_path) == str((tmp_path / name).resolve())


def test_what_is_no_regular_file_is_refused_without_opening_it(tmp_path):
    os.mkfifo(tmp_path / "fifo.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "link.mp4").symlink_to("fifo.mp4")
    for name in ("fifo.mp4", "folder.mp4", "link.mp4"):
        with pytest.raises(UnusableRow, match=f"'{name}' is not a regular file"):
            confine(name, tmp_path)


def test_a_link_stays_within_the_root_whatever_it_goes_through(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "a").mkdir(parents=True), outside.mkdir()
    (outside / "secret.mp4").touch(), (root / "b.mp4").touch()
    (root / "door").symlink_to(outside)  # a folder
    (root / "chain.mp4").symlink_to("a/next.mp4")
    (root / "a" / "next.mp4").symlink_to(outside / "secret.mp4")
    (root / "inside.mp4").symlink_to("../root/b.mp4")
    (root / "one.mp4").symlink_to("two.mp4"), (root / "two.mp4").symlink_to("one.mp4")

    for name in ("door/secret.mp4", "chain.mp4", "a/../door/secret.mp4"):
        with pytest.raises(UnusableRow, match="lies outside"):
            confine(name, root)
    with pytest.raises(UnusableRow, match=r"cannot be found .*(symbolic links|Symlink loop)"):
        confine("one.mp4", root)
    assert confine("inside.mp4", root) == str((root / "b.mp4").resolve())


def test_a_link_to_a_name_that_no_log_or_record_can_hold_is_refused(tmp_path):
    for number, name in enumerate((b"a\nb.mp4", b"\xff.mp4")):
        path = tmp_path / os.fsdecode(name)
        path.touch()
        (tmp_path / f"{number}.mp4").symlink_to(path)
        with pytest.raises(UnusableRow, match=rf"'{number}\.mp4': the name it links to holds '\\"):
            confine(f"{number}.mp4", tmp_path)


@given(name=st.text(max_size=20) | st.text("./x\0\n", max_size=20))
def test_no_name_leads_out_of_the_root_or_raises_anything_else(name, tmp_path_factory):
    root = tmp_path_factory.getbasetemp() / "a root"
    root.mkdir(exist_ok=True)
    try:
        found = confine(name, root)
    except UnusableRow as error:
        assert "\n" not in str(error)
    else:
        assert found.startswith(f"{root}/")
