"""Files joined end to end: the film goes on where players go on, and is refused by that name where they stop."""

from pathlib import Path

import av
import pytest

from envs.video.frames import decode
from envs.video.reader import CorruptVideoError, index_video, read_frames
from tests.envs.video.clips import HEIGHT, WIDTH, numbers_in, render

CASES = Path(__file__).parent / "cases"
SIZE = (HEIGHT, WIDTH)
PLAYED_ON = {
    "h264.ts": ("libx264", {"bf": "2"}),
    "mpeg2.ts": ("mpeg2video", {"bf": "2"}),
    "hevc.ts": ("libx265", {"x265-params": "log-level=none"}),
    "mpeg1.mpg": ("mpeg1video", {"bf": "2"}),
    "mpeg2.mpg": ("mpeg2video", {"bf": "2"}),
    "vp8.webm": ("libvpx", {}),
    "vp9.webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
    "h264.mkv": ("libx264", {"bf": "2"}),
    "mpeg4.avi": ("mpeg4", {"bf": "2"}),
}
STOPPED_AT = {  # containers whose header says where the film ends
    "h264.mp4": "libx264",
    "h264.flv": "libx264",
    "mpeg4.mov": "mpeg4",
    "wmv2.wmv": "wmv2",
}


def joined(target, *parts):
    target.write_bytes(b"".join(part.read_bytes() for part in parts))
    return target


@pytest.mark.parametrize("name", PLAYED_ON)
def test_the_film_goes_on_where_its_clock_starts_again(tmp_path, name):
    codec, options = PLAYED_ON[name]
    long, short = (render(tmp_path / f"{n}.{name}", codec, frames=n, options=options, gop=10) for n in (30, 15))
    index = index_video(joined(tmp_path / name, long, short))

    assert index.times_s_N == pytest.approx([number / 25 for number in range(45)], abs=0.002)
    assert index.duration_s == pytest.approx(1.8, abs=0.01)
    pixels, _, damaged = read_frames(index, index.times_s_N, SIZE)
    assert numbers_in(pixels) == [*range(30), *range(15)] and damaged == 0
    for number, shown in ((40, 10), (2, 2), (44, 14)):  # a look behind a seam is the same picture
        alone, times_s, _ = read_frames(index, [index.times_s_N[number]], SIZE)
        assert numbers_in(alone) == [shown] and (alone[0] == pixels[number]).all()
        assert times_s == (index.times_s_N[number],)


@pytest.mark.parametrize("name", STOPPED_AT)
def test_what_players_stop_at_is_refused_by_that_name(tmp_path, name):
    part = render(tmp_path / f"part.{name}", STOPPED_AT[name], frames=20)
    with pytest.raises(CorruptVideoError, match=r"is 3 files joined end to end, .*; join them with .*concat"):
        index_video(joined(tmp_path / name, part, part, part))


def test_a_third_file_that_would_not_be_read_is_not_left_out_quietly(tmp_path):
    """FFmpeg reads on into a second Matroska file, not into a third."""
    part = render(tmp_path / "part.webm", "libvpx", frames=20)
    with pytest.raises(CorruptVideoError, match="is 3 files joined end to end, of which only the first ones"):
        index_video(joined(tmp_path / "three.webm", part, part, part))


def test_fragments_whose_clock_starts_again_are_refused_by_that_name(tmp_path):
    part = render(tmp_path / "part.mp4", frames=20, muxing={"movflags": "frag_keyframe+empty_moov"})
    with pytest.raises(CorruptVideoError, match="has a clock that starts again in its fragments"):
        index_video(joined(tmp_path / "joined.mp4", part, part))


@pytest.mark.parametrize("name", ["webm_cat_red_blue.webm", "ts_cat_red_blue.ts"])
def test_red_then_blue(name):
    index = index_video(CASES / name)
    pixels, *_ = read_frames(index, [0.0, 0.9, 1.1, 1.9], (48, 64))
    assert (index.num_frames, index.num_parts, index.duration_s) == (10, 2, pytest.approx(2.0))
    assert pixels.mean(axis=(1, 2)).argmax(axis=1).tolist() == [0, 0, 2, 2]


def test_a_file_that_begins_between_keyframes_shows_the_same_pictures_however_it_is_looked_at(tmp_path):
    """They refer to pictures that are not there, and decoders take others: which, depends on what was decoded."""
    params = "open-gop=1:keyint=20:min-keyint=20:scenecut=0:bframes=3"
    first = render(tmp_path / "first.ts", frames=50, options={"x264-params": params}).read_bytes()
    with av.open(str(tmp_path / "first.ts")) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    path = tmp_path / "joined.ts"
    path.write_bytes(first + first[places[12] // 188 * 188 :])

    index = index_video(path)
    pixels, times_s, _ = read_frames(index, index.times_s_N, SIZE)
    sound = [number for number, (*_, is_damaged) in enumerate(decode(index, range(index.num_frames))) if not is_damaged]
    assert index.num_parts == 2 and index.num_frames == 88 and len(sound) >= 80
    for number in [number for number in sound if 45 < number < 66]:
        alone, shown_s, _ = read_frames(index, [times_s[number]], SIZE)
        assert shown_s == (times_s[number],) and (alone[0] == pixels[number]).all(), number


@pytest.mark.parametrize("offset_s", [95442.7, 95443.2, 26.5 * 3600])
def test_a_clock_of_33_bits_that_wraps_does_not_start_again(tmp_path, offset_s):
    muxing = {"output_ts_offset": str(offset_s)}
    index = index_video(render(tmp_path / "wraps.ts", options={"bf": "2"}, muxing=muxing))
    assert (index.num_parts, index.num_frames, index.duration_s) == (1, 100, pytest.approx(4.0))


@pytest.mark.parametrize(("first_s", "second_s"), [(0, 4000), (4000, 0), (90000, 10), (10, 90000)])
def test_broadcasts_whose_clocks_have_nothing_to_do_with_each_other(tmp_path, first_s, second_s):
    parts = [
        render(tmp_path / f"{at}.ts", frames=25, muxing={"output_ts_offset": str(at)}) for at in (first_s, second_s)
    ]
    index = index_video(joined(tmp_path / "joined.ts", *parts))
    assert (index.num_parts, index.num_frames, index.duration_s) == (2, 50, pytest.approx(2.0, abs=0.05))
