"""Every clip is decoded once, whole; what came of it is on disk at once, and holds as long as the file does."""

import errno
import json
import os
from dataclasses import asdict
from fractions import Fraction

import pytest

from envs.data.clip_status import RULES, CheckedClip, ClipStatus, ClipStatusFile, _why_unread, check_clip, quarantined
from envs.data.rows import DatasetError
from envs.video.file import FileUnavailableError
from envs.video.reader import (
    ClipCheck,
    CorruptVideoError,
    DecoderDiedError,
    DecodingFailedError,
    NoVideoStreamError,
    VideoMemoryError,
    VideoOpenError,
    VideoReader,
    VideoTimeoutError,
    index_video,
)
from tests.envs.video.clips import render, render_silence


@pytest.fixture(scope="module")
def reader():
    with VideoReader(workers=0, frame_cache_bytes=0) as reader:
        yield reader


def checked(path, status=ClipStatus.OK, **known):
    return CheckedClip(str(path), path.stat().st_size, path.stat().st_mtime_ns, status, **known)


def test_a_sound_clip_is_ok_with_all_its_frames(reader, tmp_path):
    found = check_clip(reader, str(render(tmp_path / "a.mp4", frames=50)))

    assert (found.status, found.frames, found.duration_s, found.damaged) == (ClipStatus.OK, 50, 2.0, 0)
    assert found.holds


def test_what_is_done_to_a_clip_before_it_is_shown_is_told(reader, tmp_path):
    path = render(tmp_path / "a.mp4", frames=5, pixel_aspect=Fraction(2), rotation=90)
    assert check_clip(reader, str(path)).shown_as == "turned by 90 degrees; with pixels of 2 : 1 made square"
    assert check_clip(reader, str(render(tmp_path / "b.mp4", frames=5))).shown_as == ""


def test_what_was_found_by_other_rules_is_tried_again(reader, tmp_path):
    """Before there was one length, sound clips were called truncated."""
    clip, home = render(tmp_path / "a.mp4", frames=5), tmp_path / "clips.jsonl"
    line = asdict(checked(clip, ClipStatus.QUARANTINED, reason="is truncated"))
    for rules, is_known in ((None, False), (1, False), (RULES, True)):
        told = {key: value for key, value in line.items() if key != "rules"} | ({"rules": rules} if rules else {})
        home.write_text(json.dumps(told) + "\n")
        assert (str(clip) in quarantined(home)) == is_known
        with ClipStatusFile(home) as file:
            assert (str(clip) in file.clips) == is_known


def test_what_cannot_be_used_is_quarantined_with_the_cause(reader, tmp_path):
    whole = render(tmp_path / "whole.mp4", muxing={"movflags": "faststart"}).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video")
    causes = {
        "cut.mp4": "CorruptVideoError",
        "empty.mp4": "VideoOpenError",
        "text.mp4": "VideoOpenError",
        render_silence(tmp_path / "silence.mp4").name: "NoVideoStreamError",
        "absent.mp4": "VideoOpenError",
    }
    for name, cause in causes.items():
        found = check_clip(reader, str(tmp_path / name))
        assert (found.status, found.reason.partition(":")[0]) == (ClipStatus.QUARANTINED, cause)


def test_damage_inside_a_clip_is_found_though_its_index_is_sound(reader, tmp_path):
    path = render(tmp_path / "a.mp4", frames=200, gop=200, options={"qp": "10"})
    content = bytearray(path.read_bytes())
    for at in range(len(content) // 4, 3 * len(content) // 4):
        content[at] ^= 0x5A
    path.write_bytes(content)

    assert check_clip(reader, str(path)).status is not ClipStatus.OK


class Refusing:
    """A reader that refuses every clip, the first so many times."""

    def __init__(self, error, times=99):
        self._error, self._left = error, times

    def describe(self, path):
        self._left -= 1
        if self._left >= 0:
            raise self._error(path, "is wrong", "do something")
        return index_video(path)

    def check(self, path, *, sample):
        return ClipCheck(50, 0, 1)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (CorruptVideoError, ClipStatus.QUARANTINED),
        (NoVideoStreamError, ClipStatus.QUARANTINED),
        (VideoOpenError, ClipStatus.QUARANTINED),
        (VideoTimeoutError, ClipStatus.UNDECIDED),
        (VideoMemoryError, ClipStatus.UNDECIDED),
        (DecoderDiedError, ClipStatus.UNDECIDED),
        (DecodingFailedError, ClipStatus.UNDECIDED),
        (FileUnavailableError, ClipStatus.UNDECIDED),
    ],
)
def test_only_what_will_not_change_is_a_reason_to_leave_a_clip_out(tmp_path, error, status):
    clip, home = render(tmp_path / "a.mp4", frames=3), tmp_path / "clips.jsonl"
    found = check_clip(Refusing(error), str(clip))
    assert found.status is status and str(clip) in found.reason

    with ClipStatusFile(home) as file:
        file.append(found)
    assert (str(clip) in quarantined(home)) == (status is ClipStatus.QUARANTINED)
    with ClipStatusFile(home) as file:
        assert (str(clip) in file.clips) == (status is ClipStatus.QUARANTINED)  # the others are tried again


def test_what_a_disk_fails_to_give_for_a_moment_is_not_taken_for_damage(tmp_path):
    clip = render(tmp_path / "a.mp4", frames=3)
    assert check_clip(Refusing(CorruptVideoError, times=1), str(clip)).status is ClipStatus.OK


def test_a_file_that_cannot_be_read_to_its_end_is_not_taken_for_one_cut_off(tmp_path, monkeypatch):
    clip = render(tmp_path / "a.mp4", frames=3)
    monkeypatch.setattr("envs.data.clip_status._why_unread", lambda path: "cannot be read (Input/output error)")
    found = check_clip(Refusing(CorruptVideoError), str(clip))
    assert found.status is ClipStatus.UNDECIDED and "Input/output error" in found.reason


def test_what_a_file_gives_is_read_to_its_end(tmp_path):
    clip = render(tmp_path / "a.mp4", frames=3)
    assert _why_unread(str(clip)) == _why_unread(str(tmp_path / "absent.mp4")) == _why_unread(str(tmp_path)) == ""
    assert "Input/output error" in _why_unread("/proc/self/mem")  # a regular file whose first page cannot be read


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.EMFILE, errno.ETIMEDOUT])
def test_a_file_that_cannot_be_opened_just_now_is_another_matter_than_one_that_is_not_there(
    tmp_path, monkeypatch, number
):
    clip = render(tmp_path / "a.mp4", frames=3)

    def fails(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("envs.video.file.os.open", fails)
    with pytest.raises(FileUnavailableError, match=r"a\.mp4: cannot be opened") as refusal:
        index_video(str(clip))
    assert not refusal.value.is_lasting
    with pytest.raises(VideoOpenError) as absent:
        index_video(str(tmp_path / "absent.mp4"))
    assert absent.value.is_lasting


def test_a_status_of_an_earlier_version_that_was_not_lasting_is_undecided(tmp_path):
    clip, home = render(tmp_path / "a.mp4", frames=3), tmp_path / "clips.jsonl"
    row = asdict(checked(clip, ClipStatus.QUARANTINED, reason="VideoTimeoutError: decoding did not end"))
    del row["sampled"]
    home.write_text("".join(json.dumps(row | {"lasting": lasting}) + "\n" for lasting in (True, False)))
    assert quarantined(home) == {}


def test_any_prefix_of_the_file_is_a_place_to_go_on_from(tmp_path):
    clips = [tmp_path / name for name in ("a.mp4", "b.mp4", "c.mp4")]
    for clip in clips:
        clip.write_bytes(b"x")
    home = tmp_path / "clips.jsonl"
    appended = [checked(clips[0]), checked(clips[1], ClipStatus.QUARANTINED, reason="é"), checked(clips[2])]
    with ClipStatusFile(home) as file:
        for one in appended:
            file.append(one)
    content = home.read_bytes()

    for length in range(len(content) + 1):
        home.write_bytes(content[:length])
        with ClipStatusFile(home) as file:
            known = content[:length].count(b"\n")
            assert list(file.clips.values()) == appended[:known]
            for one in appended[known:]:
                file.append(one)
        assert home.read_bytes() == content


def test_a_clip_that_has_changed_has_no_status(tmp_path):
    clip, home = tmp_path / "a.mp4", tmp_path / "clips.jsonl"
    clip.write_bytes(b"broken")
    with ClipStatusFile(home) as file:
        file.append(checked(clip, ClipStatus.QUARANTINED, reason="broken"))
    assert quarantined(home) == {str(clip): "broken"}

    clip.write_bytes(b"mended, and longer")
    assert quarantined(home) == {}
    with ClipStatusFile(home) as file:
        assert file.clips == {}


def test_the_latest_status_counts(tmp_path):
    clip, home = tmp_path / "a.mp4", tmp_path / "clips.jsonl"
    clip.write_bytes(b"x")
    with ClipStatusFile(home) as file:
        file.append(checked(clip, ClipStatus.QUARANTINED, reason="timeout"))
        file.append(checked(clip))

    assert quarantined(home) == {}


def test_no_file_quarantines_nothing(tmp_path):
    assert quarantined(tmp_path / "absent.jsonl") == {}


WRONG_TYPE = json.dumps({"video": 1, "size": 1, "mtime_ns": 1, "status": "ok"})


@pytest.mark.parametrize(
    "line", ["not json", "[]", json.dumps({"video": "a"}), json.dumps({"status": "fine"}), WRONG_TYPE]
)
def test_a_line_that_is_no_clip_status_is_named(tmp_path, line):
    home = tmp_path / "clips.jsonl"
    home.write_text(line + "\n")

    with pytest.raises(DatasetError, match=r"clips\.jsonl:1: no clip status .*delete the line"):
        quarantined(home)


def test_two_validations_do_not_write_one_file(tmp_path):
    home = tmp_path / "clips.jsonl"
    with ClipStatusFile(home), pytest.raises(DatasetError, match="another validation is writing here"):
        ClipStatusFile(home).__enter__()
