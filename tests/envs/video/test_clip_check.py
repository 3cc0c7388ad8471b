"""A clip that passes shows the same pictures however it is decoded: in one pass, and entered at its keyframes."""

import weakref

import pytest

from envs.video import clip_check
from envs.video.clip_check import check_clip_frames, sample_clip_frames
from envs.video.frames import decode
from envs.video.indexing import index_video
from envs.video.reader import CorruptVideoError, VideoReader
from tests.envs.video.clips import cut_by_copy, render


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return index_video(render(tmp_path_factory.mktemp("clip") / "clip.mp4", options={"bf": "2"}))


def otherwise_behind(keyframe_number):
    """Decoding as it is, but what begins behind the start shows the picture before: a stream that cannot be entered."""

    def decode_otherwise(index, wanted):
        enters = len(wanted) < index.num_frames and wanted[0] >= keyframe_number
        pictures = decode(index, [max(number - 1, 0) for number in wanted] if enters else wanted)
        for number, (shown, picture, is_damaged) in zip(wanted, pictures, strict=True):
            yield number if enters else shown, picture, is_damaged

    return decode_otherwise


def test_every_frame_is_decoded_and_one_of_every_keyframe_again(clip):
    checked = check_clip_frames(clip)
    assert (checked.frames, checked.damaged) == (100, 0)
    assert checked.looks == len(clip_check._groups(clip)) >= 5


def test_looks_are_bounded_however_many_keyframes_there_are(tmp_path):
    index = index_video(render(tmp_path / "clip.mp4", gop=1))
    assert check_clip_frames(index).looks == clip_check.MOST_LOOKS
    assert clip_check.SAMPLED_LOOKS - 1 <= sample_clip_frames(index).looks <= clip_check.SAMPLED_LOOKS


@pytest.mark.parametrize("check", [check_clip_frames, sample_clip_frames])
def test_a_clip_that_shows_something_else_when_it_is_entered_later_is_refused(clip, monkeypatch, check):
    monkeypatch.setattr(clip_check, "decode", otherwise_behind(1))
    with pytest.raises(CorruptVideoError, match=r"clip\.mp4: the frame at \d\.\d\d s is another picture when decoding"):
        check(clip)


def test_a_sample_decodes_a_small_part_of_a_long_clip(tmp_path):
    index = index_video(render(tmp_path / "long.mp4", frames=600, options={"sc_threshold": "0"}))
    assert sample_clip_frames(index).frames <= clip_check.SAMPLED_LOOKS * 40  # two groups of twenty each


def test_a_sample_of_a_clip_with_a_single_keyframe_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(clip_check, "SAMPLED_RUN", 10)
    index = index_video(render(tmp_path / "long.mp4", gop=1000, options={"sc_threshold": "0"}))
    assert sample_clip_frames(index).frames <= 10


@pytest.mark.parametrize("check", [check_clip_frames, sample_clip_frames])
def test_pictures_are_let_go_as_soon_as_they_have_been_seen(clip, monkeypatch, check):
    """A second of 4K is 400 MB."""
    alive, most = weakref.WeakSet(), []

    class Picture:
        """Another name for a picture, which weak references can hold."""

        def __init__(self, picture):
            self.picture = picture

    def watched(index, wanted):
        for shown, picture, is_damaged in decode(index, wanted):
            other = Picture(picture)
            alive.add(other)
            most.append(len(alive))
            yield shown, other, is_damaged
            del other

    monkeypatch.setattr(clip_check, "decode", watched)
    digest = clip_check._digest
    monkeypatch.setattr(clip_check, "_digest", lambda index, other: digest(index, other.picture))
    check(clip)
    assert max(most) <= 3


@pytest.mark.parametrize("workers", [0, 1])
def test_odd_but_sound_clips_pass(tmp_path, workers):
    whole = render(tmp_path / "whole.mp4", gop=1000)
    odd = [
        cut_by_copy(whole, tmp_path / "cut.mp4", 1.4),
        render(tmp_path / "open.mp4", "mpeg4", options={"bf": "2"}),
        render(tmp_path / "clip.ts"),
        render(tmp_path / "clip.avi", "mpeg4", frames=30),
        render(tmp_path / "one.mp4", frames=1),
        render(tmp_path / "turned.mp4", frames=20, rotation=90),
    ]
    with VideoReader(workers=workers) as reader:
        for path in odd:
            for sample in (False, True):
                assert reader.check(str(path), sample=sample).looks >= 1, path.name
