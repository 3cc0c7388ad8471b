"""Strangers' archives: what is refused, by which name, and that a refusal leaves nothing behind."""

import stat
import struct
import tarfile
import zipfile
import zlib

import pytest

from rl.published_data import archives
from rl.published_data.archives import RefusedArchive, archives_among
from rl.published_data.unpacking import unpack

GOOD = ("a/good.mp4", b"good")


def all_files(archive, home):
    return unpack(archive, home, lambda name: True, lambda read: None)


def left_in(home):
    return [path for path in home.rglob("*") if path.is_file()]


def tar_member(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_link(name):
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


UNSAFE = {
    "../../evil.mp4": "leads out of its folder",
    "a/../../evil.mp4": "leads out of its folder",
    "/etc/evil.mp4": "is an absolute path",
    "C:/evil.mp4": "is an absolute path",
    "..\\evil.mp4": "a backslash",
    "a\nb.mp4": "holds",
    f"{'x' * 300}.mp4": "255 bytes",
}


@pytest.mark.parametrize("name", UNSAFE, ids=repr)
def test_a_member_of_an_unsafe_name_refuses_a_zip_before_anything_is_written(name, zipped, tmp_path):
    with pytest.raises(RefusedArchive, match=rf"set\.zip: not unpacked: .*{UNSAFE[name]}"):
        all_files(zipped([GOOD, (name, b"evil")]), tmp_path / "out")
    assert left_in(tmp_path / "out") == []


@pytest.mark.parametrize("name", UNSAFE, ids=repr)
def test_a_member_of_an_unsafe_name_refuses_a_tar_and_leaves_nothing(name, tarred, tmp_path):
    with pytest.raises(RefusedArchive, match=rf"set\.tar\.gz: not unpacked: .*{UNSAFE[name]}"):
        all_files(tarred([GOOD, (name, b"evil")]), tmp_path / "out")
    assert left_in(tmp_path / "out") == [] and not (tmp_path / "evil.mp4").exists()


@pytest.mark.parametrize(
    ("kind", "target", "said"),
    [
        (tarfile.SYMTYPE, "/etc", "a link"),
        (tarfile.SYMTYPE, "good.mp4", "a link"),
        (tarfile.LNKTYPE, "../../etc/passwd", "a link"),
        (tarfile.FIFOTYPE, "", "no regular file"),
        (tarfile.CHRTYPE, "", "no regular file"),
        (tarfile.BLKTYPE, "", "no regular file"),
    ],
)
def test_links_and_devices_in_a_tar_are_refused_by_name(kind, target, said, tarred, tmp_path):
    with pytest.raises(RefusedArchive, match=f"'a/odd.mp4' is {said}"):
        all_files(tarred([GOOD, (tar_member("a/odd.mp4", kind, target), None), ("a/odd.mp4/x.mp4", b"x")]), tmp_path)
    assert left_in(tmp_path / "videos") == []


def test_a_link_in_a_zip_is_refused(zipped, tmp_path):
    with pytest.raises(RefusedArchive, match=r"'link\.mp4' is a link"):
        all_files(zipped([GOOD, (zip_link("link.mp4"), b"/etc/passwd")]), tmp_path)


def test_what_would_unpack_to_absurd_sizes_is_refused(zipped, tarred, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "UNJUDGED", 1000)
    monkeypatch.setattr(archives, "MOST_PACKED", 100)
    zeros = bytes(2**20)
    with pytest.raises(RefusedArchive, match=r"'bomb\.mp4': 1,\d+ bytes that would unpack to 1,048,576"):
        all_files(zipped([GOOD, ("bomb.mp4", zeros)]), tmp_path / "zip")
    with pytest.raises(RefusedArchive, match=r"'bomb\.mp4' of 1,048,576 bytes, in an archive of 1,\d+"):
        all_files(tarred([GOOD, ("bomb.mp4", zeros)]), tmp_path / "tar")
    assert left_in(tmp_path / "zip") == left_in(tmp_path / "tar") == []


def test_a_zip_whose_member_is_larger_than_it_declares_is_refused(zipped, tmp_path):
    archive = zipped({"a.mp4": bytes(range(256)) * 100})
    content = bytearray(archive.files[0].read_bytes())
    for mark, place in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):  # sizes in the member's and the directory's header
        struct.pack_into("<I", content, content.index(mark) + place, 99)
    archive.files[0].write_bytes(content)
    with pytest.raises(RefusedArchive, match=r"set\.zip: "):
        all_files(archive, tmp_path / "out")
    assert left_in(tmp_path / "out") == []


def test_a_member_that_does_not_fit_its_checksum_or_breaks_off_is_refused(zipped, tarred, tmp_path):
    archive = zipped({"a.mp4": zlib.compress(bytes(range(256))) * 50})
    content = bytearray(archive.files[0].read_bytes())
    content[60] ^= 0xFF
    archive.files[0].write_bytes(content)
    with pytest.raises(RefusedArchive, match=r"set\.zip: damaged \(.*download it again"):
        all_files(archive, tmp_path / "zip")
    broken = tarred({"a.mp4": bytes(range(256)) * 400}, name="set.tar")
    broken.files[0].write_bytes(broken.files[0].read_bytes()[:3000])
    with pytest.raises(RefusedArchive, match=r"set\.tar: "):
        all_files(broken, tmp_path / "tar")
    assert left_in(tmp_path / "zip") == left_in(tmp_path / "tar") == []


def test_a_name_that_stands_twice_and_an_encrypted_member_are_refused(tarred, zipped, tmp_path):
    with pytest.raises(RefusedArchive, match=r"'a/good\.mp4' stands twice"):
        all_files(tarred([GOOD, ("a/./good.mp4", b"other")]), tmp_path)
    archive = zipped({"a.mp4": b"secret"})
    content = bytearray(archive.files[0].read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.files[0].write_bytes(content)
    with pytest.raises(RefusedArchive, match=r"'a\.mp4' is encrypted; unpack it by hand"):
        all_files(archive, tmp_path)


def test_what_is_no_archive_at_all_is_refused_by_its_name(tmp_path):
    for name in ("page.zip", "page.tar.gz", "page.tar"):
        (tmp_path / name).write_bytes(b"<html>404</html>" * 100)
        with pytest.raises(RefusedArchive, match=rf"{name}: damaged"):
            all_files(archives_among([(name, tmp_path / name)])[0], tmp_path / "out")


def test_parts_of_a_tar_are_one_archive_and_a_missing_part_is_named(tarred, tmp_path):
    whole = tarred({"videos/1.mp4": b"1" * 9000, "videos/2.mp4": b"2" * 9000}, name="videos.tar").files[0]
    content, files = whole.read_bytes(), []
    for place, first in zip(("aa", "ab", "ac"), range(0, len(content), 8000), strict=False):
        path = tmp_path / f"videos.tar.part.{place}"
        path.write_bytes(content[first : first + 8000] if place != "ac" else content[first:])
        files.append((path.name, path))
    (archive,) = archives_among(files)
    made = all_files(archive, tmp_path / "out")
    assert [(file.path, file.bytes) for file in made.files] == [
        ("videos/videos/1.mp4", 9000),
        ("videos/videos/2.mp4", 9000),
    ]
    with pytest.raises(RefusedArchive, match="part 'ab' is missing"):
        archives_among([files[0], files[2]])
    with pytest.raises(RefusedArchive, match="zip -s 0"):
        archives_among([("set.z01", whole)])


def test_no_more_members_than_are_allowed(tarred, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MOST_MEMBERS", 3)
    with pytest.raises(RefusedArchive, match="more than 3 files"):
        all_files(tarred({f"{number}.mp4": b"" for number in range(5)}), tmp_path)
