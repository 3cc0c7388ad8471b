"""An archive is unpacked once, whole or not at all, and what was stopped goes on."""

import hashlib
import os

import pytest

from rl.published_data import unpacking
from rl.published_data.unpacking import NoRoom, known_unpacked, unpack


def everything(name):
    return True


def ignore(read):
    pass


def test_what_comes_out_is_told_with_its_digest_and_not_unpacked_again(tarred, tmp_path):
    archive = tarred({"x/a.mp4": b"aaa", "x/readme.sh": b"rm -rf", "x/b.mp4": b"bb"})
    assert known_unpacked(archive, tmp_path) is None
    made = unpack(archive, tmp_path, lambda name: name.endswith(".mp4"), ignore)
    assert [(file.path, file.sha256) for file in made.files] == [
        ("set/x/a.mp4", hashlib.sha256(b"aaa").hexdigest()),
        ("set/x/b.mp4", hashlib.sha256(b"bb").hexdigest()),
    ]
    assert made.skipped == 1 and made.sha256 == hashlib.sha256(archive.files[0].read_bytes()).hexdigest()
    assert known_unpacked(archive, tmp_path) == made
    assert {path.name for path in tmp_path.iterdir()} == {"source", "unpacked", "videos"}


def test_an_archive_that_changed_or_whose_files_are_gone_is_unpacked_again(zipped, tmp_path):
    archive = zipped({"a.mp4": b"old"})
    unpack(archive, tmp_path, everything, ignore)
    (tmp_path / "videos" / "set" / "a.mp4").unlink()
    assert known_unpacked(archive, tmp_path) is None
    archive = zipped({"b.mp4": b"new!"})
    os.utime(archive.files[0], ns=(1, 1))
    assert known_unpacked(archive, tmp_path) is None
    unpack(archive, tmp_path, everything, ignore)
    assert [path.name for path in (tmp_path / "videos" / "set").iterdir()] == ["b.mp4"]


def test_a_record_that_is_none_is_not_believed(zipped, tmp_path):
    archive = zipped({"a.mp4": b"a"})
    unpack(archive, tmp_path, everything, ignore)
    (record,) = (tmp_path / "unpacked").iterdir()
    for text in ("", "[]", "{}", '{"files": [{"path": 3}]}'):
        record.write_text(text)
        assert known_unpacked(archive, tmp_path) is None


@pytest.mark.parametrize("kind", ["zipped", "tarred"])
def test_what_was_stopped_goes_on_and_whole_files_are_not_written_again(kind, request, tmp_path, monkeypatch):
    archive = request.getfixturevalue(kind)({f"{number}.mp4": bytes([number]) * 4000 for number in range(6)})
    written, original = [], unpacking._pieces

    def stops(archive, member):
        written.append(member.name)
        if member.name == "3.mp4" and written.count("3.mp4") == 1:
            yield b"half"
            raise KeyboardInterrupt
        yield from original(archive, member)

    monkeypatch.setattr(unpacking, "_pieces", stops)
    with pytest.raises(KeyboardInterrupt):
        unpack(archive, tmp_path, everything, ignore)
    assert not (tmp_path / "videos").exists()
    made = unpack(archive, tmp_path, everything, ignore)
    assert written == ["0.mp4", "1.mp4", "2.mp4", "3.mp4", "3.mp4", "4.mp4", "5.mp4"]
    assert [file.bytes for file in made.files] == [4000] * 6
    assert (tmp_path / "videos" / "set" / "3.mp4").read_bytes() == b"\3" * 4000
    assert not list((tmp_path / "videos").rglob("*.part"))


def test_a_full_disk_is_told_before_it_is_full_and_keeps_what_is_there(zipped, tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "RESERVE", 2**60)
    with pytest.raises(NoRoom, match=r"'a\.mp4' takes 3 bytes, and 0 are left .* name another --out"):
        unpack(zipped({"a.mp4": b"abc"}), tmp_path, everything, ignore)
