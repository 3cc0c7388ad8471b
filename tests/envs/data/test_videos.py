"""Videos by the names that rows give them: found, confined to the root, or refused with what seems to be meant."""

import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.data.rows import UnusableRow
from envs.data.videos import confine, video_file

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "Zürich/Köln é.mp4") for form in ("NFC", "NFD"))


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


@pytest.mark.parametrize(
    "suffix", [".mp4", ".MP4", ".Mp4", ".mkv", ".WEBM", ".wmv", ".MPG", ".ts", ".Ogv", ".m4v", ".GIF"]
)
def test_a_suffix_is_added_in_small_or_capital_letters(tmp_path, suffix):
    (tmp_path / f"a{suffix}").touch()
    assert video_file("a", tmp_path) == f"a{suffix}"


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.mark.parametrize(("asked", "there"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_a_name_is_found_in_either_unicode_form(tmp_path, asked, there):
    root = make(tmp_path, there)
    assert confine(asked, root) == str((root / there).resolve())
    assert video_file(asked.removesuffix(".mp4"), root) == there


def test_where_both_forms_are_there_each_name_is_its_own_file(tmp_path):
    root = make(tmp_path, COMPOSED, DECOMPOSED)
    for name in (COMPOSED, DECOMPOSED):
        assert confine(name, root) == str((root / name).resolve())
    mixed = f"{Path(COMPOSED).parent}/{Path(DECOMPOSED).name}"
    with pytest.raises(UnusableRow, match="cannot be found"):  # a third file: which of the two would it be?
        confine(mixed.replace("ö", "o\u0308"), make(tmp_path / "other", "Zürich/Köln é.mp4", "Zürich/Köln e\u0301.mp4"))


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("videos\\a.mp4", "'videos/a.mp4' is there (folders are parted by /, not by a backslash)"),
        (" videos/a.mp4", "'videos/a.mp4' is there (blanks or quotes stand around the name)"),
        ("videos/a.mp4\u200b", "'videos/a.mp4' is there (blanks or quotes stand around the name)"),
        ("'videos/a.mp4'", "'videos/a.mp4' is there (blanks or quotes stand around the name)"),
        (
            "C:\\data\\videos\\a.mp4",
            "'videos/a.mp4' is there (a Windows path, folders are parted by /, not by a backslash",
        ),
        ("D:/videos/a.mp4", "'videos/a.mp4' is there (a Windows path"),
        ("\\\\server\\share\\videos\\a.mp4", "'videos/a.mp4' is there (a Windows path"),
        ("C:\\no.mp4", "(a Windows path)"),
        ("file://videos/a.mp4", "'videos/a.mp4' is there (a path is meant, not a file: URL)"),
        ("file:///data/videos/b%20c.mp4", "'videos/b c.mp4' is there (a path is meant, not a file: URL"),
        ("file://localhost/videos/a.mp4", "'videos/a.mp4' is there (a path is meant, not a file: URL"),
        ("https://host.org/videos/a.mp4", "'videos/a.mp4' is there (a URL: videos are read from the disk"),
        ("s3://bucket/none.mp4", "(a URL: videos are read from the disk, so download it first)"),
        ("videos/b%20c.mp4", "'videos/b c.mp4' is there (percent-encoding is not decoded)"),
        ("~/videos/a.mp4", "'videos/a.mp4' is there (paths are relative to the folder of videos)"),
        ("~/no.mp4", "(neither ~ nor variables are expanded in rows)"),
        ("$DATA/no.mp4", "(neither ~ nor variables are expanded in rows)"),
        ("/elsewhere/videos/a.mp4", "'videos/a.mp4' is there (paths are relative to the folder of videos)"),
        ("root/videos/a.mp4", "'videos/a.mp4' is there (paths are relative to the folder of videos)"),
        ("VIDEOS/A.MP4", "'videos/a.mp4' is there (capital and small letters differ)"),
        ("videos/a", "'videos/a.mp4' is there (the suffix is part of the name)"),
        (" Videos\\A ", ""),
        ("videos/a.mp4/x.mp4", ""),
        ("none.mp4", ""),
    ],
)
def test_a_name_that_is_not_there_is_refused_with_what_it_seems_to_mean(tmp_path, name, advice):
    root = make(tmp_path / "root", "videos/a.mp4", "videos/b c.mp4")
    make(tmp_path, "outside.mp4")
    with pytest.raises(UnusableRow, match="cannot be found under") as refusal:
        confine(name, root)
    assert advice in str(refusal.value) and "outside" not in str(refusal.value)


def test_advice_names_no_file_outside_the_root(tmp_path):
    root = make(tmp_path / "root", "a.mp4")
    make(tmp_path, "secret.mp4")
    (root / "door").symlink_to(tmp_path)
    for name in ("..\\secret.mp4", "door\\secret.mp4", "file:../secret.mp4", "..%2Fsecret.mp4", "../SECRET.mp4"):
        with pytest.raises(UnusableRow) as refusal:
            confine(name, root)
        assert "is there" not in str(refusal.value)


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
