"""One length: until the last frame has been on screen, whatever says for how long; what is cut is still refused."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from envs.data.clip_status import ClipStatus, check_clip
from envs.video.reader import VideoError, VideoReader, index_video, read_frames
from tests.envs.video.clips import HEIGHT, WIDTH, cut_by_copy, picture, render

CASES = Path(__file__).parent / "cases"
SIZE = (HEIGHT, WIDTH)


def render_slots(path, codec, slots, *, last_slots=1, options=None):
    """Encode numbered pictures into slots of 1/25 s; the last one stays for `last_slots`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "rgb8" if codec == "gif" else "yuv420p"
        stream.codec_context.time_base, stream.codec_context.thread_count = Fraction(1, 25), 1
        for number, slot in enumerate(slots):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = slot, Fraction(1, 25)
            last = number == len(slots) - 1
            for packet in [*stream.encode(frame), *(stream.encode(None) if last else [])]:
                if packet.pts * packet.time_base * 25 == slots[-1]:
                    packet.duration = round(last_slots / 25 / packet.time_base)
                container.mux(packet)
    return path


@pytest.mark.parametrize(
    ("name", "frames", "seconds"),
    [
        ("gif_pause_at_end.gif", 5, 2.4),
        ("mp4_last_frame_1s.mp4", 10, 1.36),
        ("mov_last_frame_1s.mov", 10, 1.36),
        ("mpg_gap.mpg", 21, 2.0),
    ],
)
def test_the_last_frame_stays_for_as_long_as_its_file_says(name, frames, seconds):
    index = index_video(CASES / name)
    assert (index.num_frames, index.duration_s) == (frames, pytest.approx(seconds))
    assert index.native_fps == pytest.approx(frames / seconds)
    _, times_s, damaged = read_frames(index, [seconds, index.times_s_N[-1]], SIZE)
    assert times_s == (index.times_s_N[-1],) * 2 and damaged == 0


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mp4", "libx264"), ("mov", "mpeg4"), ("mkv", "libx264"), ("webm", "libvpx"), ("flv", "flv")]
)
def test_a_screen_recordings_last_picture_stays(tmp_path, suffix, codec):
    path = render_slots(tmp_path / f"screen.{suffix}", codec, range(10), last_slots=50, options={"bf": "0"})
    index = index_video(path)
    assert index.num_frames == 10 and index.duration_s == pytest.approx(2.36, abs=0.002)
    with VideoReader(workers=0) as reader:
        clip = check_clip(reader, str(path))
    assert (clip.status, clip.duration_s) == (ClipStatus.OK, index.duration_s)


@pytest.mark.parametrize(
    ("codec", "slots", "seconds"),
    [
        ("mjpeg", [0, 1, 2, 5, 6, 12], 0.52),  # empty chunks take up time
        ("mpeg4", [0, 1, 2, 5, 6, 12], 0.52),
        ("mjpeg", [0, 1, 20], 0.84),
    ],
)
def test_empty_chunks_of_avi_take_up_time(tmp_path, codec, slots, seconds):
    index = index_video(render_slots(tmp_path / "dropped.avi", codec, slots))
    assert index.times_s_N == pytest.approx([slot / 25 for slot in slots])
    assert index.duration_s == pytest.approx(seconds)


def test_an_edit_list_ends_within_the_last_frame(tmp_path):
    whole = render(tmp_path / "whole.mp4", frames=50)
    index = index_video(cut_by_copy(whole, tmp_path / "cut.mp4", 0.4))
    assert index.duration_s == pytest.approx(1.6)


CUT = {  # container: codec, and how its file is written so that its header stands before what is cut
    "mp4": ("libx264", {"movflags": "faststart"}),
    "mov": ("libx264", {"movflags": "faststart"}),
    "mkv": ("libx264", {}),
    "webm": ("libvpx", {}),
    "flv": ("flv", {}),
    "avi": ("mpeg4", {}),
    "wmv": ("wmv2", {}),
}


@pytest.mark.parametrize("suffix", CUT)
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_what_is_cut_off_is_refused(tmp_path, suffix, share):
    codec, muxing = CUT[suffix]
    path = render(tmp_path / f"whole.{suffix}", codec, frames=75, muxing=muxing)
    assert index_video(path).duration_s == pytest.approx(3.0, abs=0.05)

    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(VideoError, match=r"is truncated: (\d\.\d\d of [23]\.\d\d s|\d\d%)|not a readable video"):
        index_video(path)


@pytest.mark.parametrize("suffix", CUT)
def test_garbage_behind_a_whole_file_takes_nothing_from_it(tmp_path, suffix):
    path = render(tmp_path / f"whole.{suffix}", CUT[suffix][0], frames=25)
    before = index_video(path)
    path.write_bytes(path.read_bytes() + np.random.default_rng(0).bytes(5000))
    after = index_video(path)
    assert (after.num_frames, after.duration_s) == (before.num_frames, before.duration_s) and after.num_frames == 25


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "flv", "wmv"])
def test_sound_that_lasts_longer_says_nothing_of_the_film(tmp_path, suffix):
    codec = {"wmv": "wmv2", "avi": "mpeg4", "flv": "flv"}.get(suffix, "libx264")
    index = index_video(render_with_sound(tmp_path / f"sound.{suffix}", codec, sound_s=3.0))
    assert (index.num_frames, index.duration_s) == (25, pytest.approx(1.0, abs=0.002))


def render_with_sound(path, codec, sound_s):
    """A second of film, and silence."""
    audio = {"wmv": "wmav2", "avi": "mp2", "flv": "adpcm_swf"}.get(path.suffix[1:], "aac")
    layout = "s16" if audio in ("mp2", "adpcm_swf") else "fltp"
    with av.open(str(path), "w") as container:
        film, sound = container.add_stream(codec, rate=25), container.add_stream(audio, rate=44_100, layout="mono")
        film.width, film.height, film.pix_fmt, sound.bit_rate = WIDTH, HEIGHT, "yuv420p", 64_000
        film.codec_context.thread_count = 1
        for number in range(25):
            container.mux(film.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
        container.mux(film.encode(None))
        for start in range(0, int(sound_s * 44_100), 4096):
            silence = av.AudioFrame(format=layout, layout="mono", samples=4096)
            silence.planes[0].update(bytes(silence.planes[0].buffer_size))
            silence.sample_rate, silence.pts, silence.time_base = 44_100, start, Fraction(1, 44_100)
            container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
    return path


def test_a_film_that_starts_late_on_its_containers_clock_is_whole(tmp_path):
    """Two B-frames delay the first picture of a Flash file by two frames; its end is declared on the same clock."""
    index = index_video(render(tmp_path / "late.flv", frames=50, options={"bf": "2"}))
    assert index.duration_s == pytest.approx(2.0)
