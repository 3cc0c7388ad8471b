"""What is taken for a video by its name."""

import pytest

from envs.video.suffixes import VIDEO_SUFFIXES, is_video_name

NAMED = """.mp4 .mkv .webm .avi .mov .wmv .mpg .mpeg .ts .mts .m2ts .ogv .m4v .gif .3gp .flv .asf .vob
    .MP4 .WMV .Mov .TS"""


@pytest.mark.parametrize("suffix", NAMED.split())
def test_videos_are_known_by_their_suffix_in_small_and_capital_letters(suffix):
    assert is_video_name(f"a.b{suffix}")


@pytest.mark.parametrize("name", ["a.txt", "mp4", "a.mp4.part", "a.jsonl", "a.m4a", "a.mp3", "", ".mp4", "a.mp4/"])
def test_other_files_are_not(name):
    assert not is_video_name(name)


def test_the_suffixes_are_small_and_each_stands_once():
    assert len(set(VIDEO_SUFFIXES)) == len(VIDEO_SUFFIXES)
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in VIDEO_SUFFIXES)
