"""Videos by chance or malice unfit: each is refused by name or read right, in bounded time and memory, and the next
clip is read as if nothing had been."""

import json
import os
import resource
import signal
import socket
import threading
import time
from collections import Counter
from dataclasses import replace

import av
import numpy as np
import pytest

from envs.data.clip_status import ClipStatus, ClipStatusFile, check_clip, quarantined
from envs.data.dataset import load_tasks
from envs.synthetic.clip import Flash, SyntheticClip, draw, write_mp4
from envs.video.clock import decoding_starts
from envs.video.deadline import TimeLimits
from envs.video.decode_memory import MIB, resident_bytes
from envs.video.decode_process import DecodeProcess, receive
from envs.video.frame_cache import FrameCache, read_frames_through
from envs.video.frames import Scaler
from envs.video.indexing import IndexCache
from envs.video.orientation import Orientation
from envs.video.packets import read_packets
from envs.video.reader import (
    CorruptVideoError,
    DecodingFailedError,
    NoVideoStreamError,
    VideoError,
    VideoMemoryError,
    VideoOpenError,
    VideoReader,
    VideoTimeoutError,
    index_video,
    read_frames,
)
from tests.calibration import within
from tests.envs.fuzzing import try_all
from tests.envs.video.clips import (
    HEIGHT,
    WIDTH,
    cut_by_copy,
    full_decode,
    numbers_in,
    render,
    render_grey,
    render_silence,
)
from tests.envs.video.mutants import boxes, mutants

pytestmark = pytest.mark.thorough

SIZE = (HEIGHT, WIDTH)
TIMEOUT_S = within(20.0)
MEMORY_MIB = 512


@pytest.fixture(scope="module")
def reader():
    with VideoReader(workers=1, timeout_s=TIMEOUT_S, memory_mib=MEMORY_MIB) as reader:
        yield reader


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return render(tmp_path_factory.mktemp("clip") / "clip.mp4", options={"bf": "2"})


def refusal(reader, path):
    """What the reader says of a file it must not read."""
    with pytest.raises(VideoError) as refused:
        reader.frames(str(path), (0.0,), SIZE)
    return refused.value


def as_text(refused):
    return f"{type(refused).__name__}: {refused.problem}"


def patched(path, target, kind, offset, number, size=4):
    """A copy whose boxes of a kind hold another number, `offset` bytes after their name."""
    content = bytearray(path.read_bytes())
    for box in boxes(bytes(content)):
        if box.kind == kind:
            content[box.start + 8 + offset : box.start + 8 + offset + size] = number.to_bytes(size)
    target.write_bytes(content)
    return target


# What is no file of a video -------------------------------------------------------------------------------------------


def special_files(folder):
    os.mkfifo(folder / "fifo.mp4")
    (folder / "folder.mp4").mkdir()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(folder / "socket.mp4"))
    for name, target in (
        ("endless", "/dev/zero"),
        ("fifo-link", "fifo.mp4"),
        ("loop", "loop.mp4"),
        ("lost", "nowhere"),
    ):
        (folder / f"{name}.mp4").symlink_to(target)
    (folder / "empty.mp4").touch()
    yield from ((name, "not a regular file") for name in ("fifo", "folder", "socket", "endless", "fifo-link"))
    yield from (("loop", "symbolic links"), ("lost", "No such file"), ("empty", "zero bytes"))
    listening.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_no_regular_file_is_refused_without_waiting_for_it(tmp_path, workers):
    with VideoReader(workers=workers, timeout_s=TIMEOUT_S) as reader:
        for name, problem in special_files(tmp_path):
            refused = refusal(reader, tmp_path / f"{name}.mp4")
            assert type(refused) is VideoOpenError and problem in refused.problem, (name, as_text(refused))
    assert reader.take_faults() == []  # nobody hung


@pytest.mark.parametrize("name", ["x" * 300 + ".mp4", "x/" * 3000, "a\0b.mp4", "half \ud800.mp4", ""])
def test_a_path_that_cannot_be_one_is_refused(tmp_path, reader, name):
    refused = refusal(reader, f"{tmp_path}/{name}" if name else "")
    assert type(refused) is VideoOpenError and refused.remedy


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text.mp4", b"this is not a video" * 100),
        ("picture.mp4", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x02\0\0\0" + bytes(100)),
        ("page.mp4", b"<html><script>alert(1)</script>" * 50),
        ("playlist.m3u8", b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nclip.mp4\n#EXT-X-ENDLIST\n"),
        ("playlist.mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n"),
        ("list.mp4", b"ffconcat version 1.0\nfile clip.mp4\n"),
        ("session.mp4", b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"),
        ("art.mp4", b"\x1b[31mtext that terminals draw\x1b[0m\n" * 50),
    ],
)
def test_text_pictures_and_lists_of_other_files_are_no_videos(tmp_path, reader, name, content):
    """Some demuxers draw text, others read what a list names, from disk or from any host."""
    render(tmp_path / "clip.mp4", frames=10)
    (tmp_path / name).write_bytes(content)
    refused = refusal(reader, tmp_path / name)
    assert type(refused) is VideoOpenError and "not a readable video" in refused.problem, as_text(refused)


def test_sound_alone_is_no_video(tmp_path, reader):
    assert type(refusal(reader, render_silence(tmp_path / "sound.mp4"))) is NoVideoStreamError


# Odd, but right -------------------------------------------------------------------------------------------------------


def odd_clips(folder):
    """Clips that must be read, each for another reason."""
    plain = render(folder / "plain.mp4", gop=1000)
    yield "wrong extension", plain.rename(folder / "plain.avi")
    yield "no extension", render(folder / "x.webm", "libvpx", frames=20).rename(folder / "video")
    yield "one frame", render(folder / "one.mp4", frames=1)
    yield "variable rate", render(folder / "vfr.mp4", times_ms=[0, 40, 55, 170, 180, 1260, 1300, 1301])
    yield "edit list", cut_by_copy(folder / "plain.avi", folder / "cut.mp4", 1.4)
    yield "two streams", render(folder / "two.mp4", streams=2)
    yield "length declared absurd", patched(render(folder / "a.mp4"), folder / "long.mp4", b"mvhd", 16, 0xFFFFFFFF)
    yield "size declared absurd", patched(render(folder / "b.mp4"), folder / "size.mp4", b"tkhd", 76, 0xFFFF0000)
    yield "slightly turned", patched(render(folder / "c.mp4"), folder / "turned.mp4", b"tkhd", 44, 0x2000)
    yield "odd name", render(folder / "a \"b\" 'c' <d>&%41#?;$(e) ü 日本 \u202e.mp4", frames=20)
    yield "long name", render(folder / f"{'x' * 251}.mp4", frames=20)
    yield "looks like an address", (folder / "http:").mkdir() or render(folder / "http:" / "c.mp4", frames=20)
    yield "not UTF-8", render(folder / "z.mp4", frames=20).rename(folder / os.fsdecode(b"\xff\xfe.mp4"))


def test_odd_clips_give_the_frames_that_a_plain_decode_gives(tmp_path, reader):
    for name, path in odd_clips(tmp_path):
        index = reader.describe(str(path))
        everything = dict(full_decode(path, index.stream_index))
        asked_s = tuple(np.linspace(0, index.duration_s, 7))
        pixels, times_s, damaged = reader.frames(str(path), asked_s, SIZE)
        scaler, on_screen = (
            Scaler(index.orientation, SIZE),
            [max(t for t in everything if t <= s + 1e-6) for s in asked_s],
        )
        assert times_s == pytest.approx(on_screen) and damaged == 0, name
        assert (pixels == np.stack([scaler(everything[time_s]) for time_s in on_screen])).all(), name


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_turned_clips_are_shown_upright(tmp_path, reader, rotation):
    path = render(tmp_path / "turned.mp4", frames=20, rotation=rotation)
    index = reader.describe(str(path))
    (_, frame), *_ = full_decode(path, index.stream_index)
    size = (WIDTH, HEIGHT) if rotation != 180 else SIZE
    pixels, *_ = reader.frames(str(path), (0.0,), size)
    assert (index.height, index.width, index.orientation) == (*size, Orientation(rotation // 90))
    assert (pixels[0] == Scaler(index.orientation, size)(frame)).all()


# Damage ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9, 0.97, 0.999])
@pytest.mark.parametrize("form", ["plain", "fast start", "webm", "ts"])
def test_of_a_file_that_breaks_off_right_frames_are_read_or_none(tmp_path, reader, form, share):
    path = tmp_path / {"webm": "clip.webm", "ts": "clip.ts"}.get(form, "clip.mp4")
    muxing = {"movflags": "faststart"} if form == "fast start" else None
    content = render(path, "libvpx" if form == "webm" else "libx264", muxing=muxing).read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    try:
        index = reader.describe(str(path))
        asked = range(0, index.num_frames, 7)
        pixels, times_s, damaged = reader.frames(str(path), index.times_s_N[list(asked)], SIZE)
    except VideoError as refused:
        assert type(refused) in (VideoOpenError, NoVideoStreamError, CorruptVideoError), as_text(refused)
        return
    shown = [round(25 * time_s) for time_s in times_s]
    wrong = sum(number != on_screen for number, on_screen in zip(numbers_in(pixels), shown, strict=True))
    assert wrong <= max(1, damaged)  # the last picture may be half there


ABSURD = {  # name: (box, bytes after its name, number, what comes of it)
    "lasts 99 days": (b"mdhd", 16, 0xFFFFFFFF, 100),  # frames: what the packets say is believed
    "4 billion frames": (b"stts", 8, 0xFFFFFFFF, 100),
    "pictures of 65535 x 65535": (b"stsd", 40, 0xFFFFFFFF, 100),  # the stream itself says it right
    "pictures of 0 x 0": (b"stsd", 40, 0, 100),
    "no clock": (b"mdhd", 12, 0, 1),  # the frames have no times: the first is shown throughout
    "clock of 4 GHz": (b"mdhd", 12, 0xFFFFFFFF, 1),
    "frames of no length": (b"stts", 12, 0, CorruptVideoError),
    "frames of days": (b"stts", 12, 0x7FFFFFFF, CorruptVideoError),
    "2 billion samples of one size": (b"stsz", 4, 1 << 32 | 0x7FFFFFFF, CorruptVideoError),
    "chunks elsewhere": (b"stco", 8, 0xFFFFFFF0, CorruptVideoError),
    "4 billion tables": (b"stts", 4, 0xFFFFFFFF, VideoMemoryError),
}


@pytest.mark.parametrize("name", ABSURD)
def test_an_absurd_header_is_refused_or_seen_through(clip, tmp_path, name):
    kind, offset, number, expected = ABSURD[name]
    path = patched(clip, tmp_path / "absurd.mp4", kind, offset, number, size=8 if number >> 32 else 4)
    process = DecodeProcess("pyav", 0, TIMEOUT_S, MEMORY_MIB * MIB)
    started = time.monotonic()
    try:
        index = process.describe(str(path))
        assert 0 < index.duration_s < 1e7 and index.native_fps > 0 and index.times_s_N[-1] < index.duration_s
        first, *_ = process.frames(str(path), (0.0,), SIZE)
        assert index.num_frames == expected and numbers_in(first) == [0]
    except VideoError as refused:
        assert type(refused) is expected, as_text(refused)
    finally:
        assert resident_bytes(process.pid or 0) < (MEMORY_MIB + 64) * MIB
        process.close()
    assert time.monotonic() - started < TIMEOUT_S


def test_pictures_beyond_all_measure_are_refused_before_memory_is_taken(tmp_path):
    """A keyframe of VP8 says its size in 14 bits each, right after its start code."""
    path = render(tmp_path / "huge.webm", "libvpx", frames=10)
    content = path.read_bytes()
    at = content.index(b"\x9d\x01\x2a") + 3
    path.write_bytes(content[:at] + (0x3FFF).to_bytes(2, "little") * 2 + content[at + 4 :])
    process = DecodeProcess("pyav", 0, TIMEOUT_S, MEMORY_MIB * MIB)
    with pytest.raises(CorruptVideoError, match=r"huge\.webm"):
        process.frames(str(path), (0.0,), SIZE)
    assert resident_bytes(process.pid) < 128 * MIB and process.replaced == {}  # 384 MiB would be one picture
    process.close()


def test_pictures_that_grow_on_the_way_do_not_overfill_the_store(tmp_path):
    path = render(tmp_path / "clip.mp4", frames=50)
    index = index_video(path)
    cache = FrameCache(index.num_frames * index.frame_bytes - 1)
    as_if_smaller = replace(index, frame_bytes=index.frame_bytes // 2)

    pixels, *_ = read_frames_through(cache, as_if_smaller, (0.0, 1.0, 1.9), SIZE)
    assert numbers_in(pixels) == [0, 25, 47] and cache.held_bytes < cache.budget_bytes


# Without end ----------------------------------------------------------------------------------------------------------


def test_a_stream_of_too_many_packets_is_refused(tmp_path, monkeypatch):
    path = render(tmp_path / "long.mp4")
    monkeypatch.setattr("envs.video.packets.MAX_PACKETS", 99)
    with pytest.raises(CorruptVideoError, match=r"more than 99 packets: does its stream never end\?.*shorter clips"):
        index_video(path)


def test_a_file_that_grows_is_read_as_it_is_at_the_time(tmp_path, reader):
    path, whole = tmp_path / "growing.ts", render(tmp_path / "whole.ts").read_bytes()
    lengths = []
    for share in (0.4, 0.7, 1.0):
        path.write_bytes(whole[: int(len(whole) * share) // 188 * 188])
        lengths.append(reader.describe(str(path)).num_frames)
        pixels, *_ = reader.frames(str(path), (0.0, 0.8), SIZE)
        assert numbers_in(pixels) == [0, 20]
    assert 20 < lengths[0] < lengths[1] < lengths[2] == 100


def test_streams_that_come_to_light_on_the_way_end_the_reading_where_the_file_ends(tmp_path):
    """PyAV asks its list of streams for one that is not in it, after the last packet."""

    class Container:
        def __init__(self, container):
            self.format, self.demux = container.format, lambda stream: self._packets(container.demux(stream))

        def _packets(self, packets):
            yield from packets
            raise IndexError("list index out of range")

    path = render(tmp_path / "clip.ts", frames=30)
    with av.open(str(path)) as container:
        packets, first = read_packets("clip.ts", Container(container), container.streams.video[0])
    assert len(packets) == 30 and first.width == WIDTH


def test_a_file_that_is_another_one_when_it_is_decoded_is_refused(tmp_path):
    path = render(tmp_path / "clip.mp4", frames=50)
    index = index_video(path)
    render(tmp_path / "other.mp4", frames=60).replace(path)
    with pytest.raises(VideoOpenError, match="changed while it was being read"):
        read_frames(index, (0.0,), SIZE)


def test_indices_held_are_bounded_by_their_packets(tmp_path):
    indices = [index_video(render(tmp_path / f"{i}.mp4", frames=50)) for i in range(3)]
    cache = IndexCache(max_packets=120)
    for index in indices:
        cache.keep(index)
    assert [cache.find(index.file_key) is index for index in indices] == [False, True, True]
    assert cache.held_packets == 100


# Memory ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def eight_k(tmp_path_factory):
    return str(render_grey(tmp_path_factory.mktemp("8k") / "8k.mp4", "mpeg4", 7680, 4320))


def test_one_frame_of_8k_is_read_within_bounds(eight_k, reader):
    pixels, *_ = reader.frames(eight_k, (0.0,), (56, 112))
    assert pixels.shape == (1, 56, 112, 3) and np.abs(pixels.astype(int) - 128).max() < 8
    assert resident_bytes(reader._decoders[0].pid) < MEMORY_MIB * MIB


def test_a_clip_that_needs_more_memory_is_refused_by_name_and_the_process_replaced(eight_k, clip):
    process = DecodeProcess("pyav", frame_cache_bytes=0, timeout_s=TIMEOUT_S, memory_bytes=96 * MIB)
    with pytest.raises(VideoMemoryError, match=r"8k\.mp4: .* more than the 96 MiB .*; raise video\.decode_memory_mib"):
        process.frames(eight_k, (0.0,), SIZE)
    assert process.replaced == {"memory": 1} and process.pid is None
    assert [fault.kind for fault in process.take_faults()] == ["decoder_memory"]

    assert numbers_in(process.frames(str(clip), (1.0,), SIZE)[0]) == [25]
    process.close()


def test_what_a_process_holds_before_its_first_request_takes_nothing_from_its_memory(clip):
    process = DecodeProcess("pyav", frame_cache_bytes=0, timeout_s=TIMEOUT_S, memory_bytes=32 * MIB)  # numpy takes more
    assert numbers_in(process.frames(str(clip), (1.0,), SIZE)[0]) == [25]
    process.close()


def test_missing_memory_is_never_taken_for_damage(tmp_path):
    """FFmpeg leaves out a picture for which there is no room; a neighbour must not quietly stand in for it."""
    path = str(render_grey(tmp_path / "8k.mp4", "libx264", 7680, 4320, frames=2, options={"preset": "ultrafast"}))
    kinds = Counter()
    for memory_mib in (100, 150, 400):
        process = DecodeProcess("pyav", 0, TIMEOUT_S, memory_mib * MIB)
        try:
            *_, damaged = process.frames(path, (0.0, 0.04), (56, 112))
            kinds["frames"] += 1
            assert damaged == 0
        except VideoMemoryError:
            kinds["refused"] += 1
        process.close()
    assert set(kinds) == {"frames", "refused"}


def test_a_clip_does_not_pay_for_what_others_left_behind(eight_k, clip):
    """A process that is not fresh is replaced, and the clip tried again, before it is refused."""
    process = DecodeProcess("pyav", frame_cache_bytes=0, timeout_s=TIMEOUT_S, memory_bytes=MEMORY_MIB * MIB)
    process.describe(str(clip))
    leaky = process.pid
    resource.prlimit(leaky, resource.RLIMIT_DATA, (100 * MIB, 100 * MIB))  # as if the rest were lost to leaks

    pixels, *_ = process.frames(eight_k, (0.0,), (56, 112))
    assert pixels.shape == (1, 56, 112, 3) and process.replaced == {"memory": 1} and process.pid != leaky
    process.close()


def test_a_process_is_replaced_after_many_requests(clip):
    process = DecodeProcess("pyav", frame_cache_bytes=0, timeout_s=TIMEOUT_S, worn_requests=3)
    pids = []
    for _ in range(7):
        process.describe(str(clip))
        pids.append(process.pid)
    process.close()
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 1] and process.replaced == {"worn": 2}
    assert process.take_faults() == []  # planned


def test_a_process_that_has_grown_is_replaced(clip, monkeypatch):
    process = DecodeProcess("pyav", frame_cache_bytes=50 * MIB, timeout_s=TIMEOUT_S, memory_bytes=400 * MIB)
    process.describe(str(clip))
    held = {process.pid: 250 * MIB}  # its frame cache and half of its memory
    monkeypatch.setattr("envs.video.decode_process.resident_bytes", lambda pid: held.get(pid, 0))
    process.describe(str(clip))
    assert process.replaced == {}

    held[process.pid] += 1
    process.describe(str(clip))
    assert process.replaced == {"worn": 1}
    process.close()


def test_a_reader_tells_which_processes_broke_over_what_and_how_soon_others_took_over(clip):
    with VideoReader(workers=2, timeout_s=TIMEOUT_S) as reader:
        for _ in range(2):
            reader.describe(str(clip))
            process = reader._decoder_of(str(clip))
            os.kill(process.pid, signal.SIGSTOP)
            threading.Timer(0.2, os.kill, (process.pid, signal.SIGKILL)).start()
            assert reader.describe(str(clip)).duration_s > 0  # a fresh process answers
        faults = reader.take_faults()
        assert [(fault.kind, fault.worker) for fault in faults] == [("decoder_death", "decoder")] * 2
        assert all(str(clip) in fault.cause and 0 < fault.recovery_s < TIMEOUT_S for fault in faults)
        assert reader.take_faults() == []

        os.kill(process.pid, signal.SIGKILL)
        process._process.wait()
        assert reader.describe(str(clip)).duration_s > 0
        assert [fault.cause for fault in reader.take_faults()] == ["died between two requests"]


# Time -----------------------------------------------------------------------------------------------------------------


def test_a_request_ends_at_its_deadline_even_if_the_process_cannot_be_killed(clip, monkeypatch, caplog):
    """A process that waits for a dead disk takes no signal; the request must not wait with it."""
    process = DecodeProcess("pyav", frame_cache_bytes=0, timeout_s=TIMEOUT_S, stall_timeout_s=1.0)
    process.describe(str(clip))
    stuck = process._process
    os.kill(stuck.pid, signal.SIGSTOP)
    monkeypatch.setattr("envs.video.decode_process.END_S", 0.2)
    monkeypatch.setattr(stuck, "kill", lambda: None)

    started = time.monotonic()
    with pytest.raises(VideoTimeoutError):
        process.frames(str(clip), (0.0,), SIZE)
    assert time.monotonic() - started < within(5) and "left behind" in caplog.text
    assert numbers_in(process.frames(str(clip), (1.0,), SIZE)[0]) == [25]

    os.kill(stuck.pid, signal.SIGKILL)
    stuck.wait()
    process.close()


def test_a_kill_that_comes_as_the_answer_does_not_hit_the_next_request(clip, monkeypatch):
    process = DecodeProcess("pyav", frame_cache_bytes=0, timeout_s=TIMEOUT_S, stall_timeout_s=0.5)

    def received_at_the_last_moment(pipe):
        answer = receive(pipe)
        process._process.wait(TIMEOUT_S)  # until the deadline has killed it
        return answer

    monkeypatch.setattr("envs.video.decode_process.receive", received_at_the_last_moment)
    assert process.describe(str(clip)).num_frames == 100
    assert process.replaced == {"deadline": 1} and process.pid is None
    assert [fault.kind for fault in process.take_faults()] == ["decoder_deadline"]

    monkeypatch.setattr("envs.video.decode_process.receive", receive)
    process._limits = TimeLimits(TIMEOUT_S, TIMEOUT_S)
    assert numbers_in(process.frames(str(clip), (1.0,), SIZE)[0]) == [25]
    process.close()


def test_keyframes_that_run_backwards_do_not_make_indexing_slow():
    """300,000 keyframes, each displayed before the last: with a search through all of them, an hour."""
    pts_P = np.arange(300_000)[::-1]
    started = time.monotonic()
    starts_P = decoding_starts(pts_P, np.ones(len(pts_P), dtype=bool))
    assert (starts_P == np.arange(300_000)).all() and time.monotonic() - started < within(10)


def test_a_frame_is_decoded_from_the_last_keyframe_that_precedes_it_in_the_file_and_on_screen():
    """Against a search through all of them."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        pts_P, key_P = rng.integers(0, 30, size=20), rng.random(20) < 0.4
        expected = []
        for position, pts in enumerate(pts_P):
            keys = [key for key in np.flatnonzero(key_P) if key <= position]
            expected.append(next((key for key in reversed(keys) if pts_P[key] <= pts), keys[0] if keys else 0))
        assert decoding_starts(pts_P, key_P).tolist() == expected


# What nobody foresaw --------------------------------------------------------------------------------------------------


def test_an_error_that_nobody_foresaw_names_the_file_and_the_place(clip, monkeypatch):
    monkeypatch.setattr("envs.video.decoder.index_video", lambda path: 1 / 0)
    with pytest.raises(
        DecodingFailedError, match=r"clip\.mp4: decoding failed \(ZeroDivisionError: .*\.py:\d+\); re-enc"
    ):
        VideoReader(workers=0).describe(str(clip))


def test_a_failure_that_may_pass_is_tried_again_by_the_next_validation(eight_k, tmp_path):
    home = tmp_path / "clips.jsonl"
    with (
        VideoReader(workers=1, timeout_s=TIMEOUT_S, frame_cache_bytes=0, memory_mib=96) as reader,
        ClipStatusFile(home) as file,
    ):
        found = check_clip(reader, eight_k)
        file.append(found)
    assert "VideoMemoryError" in found.reason and quarantined(home) == {}
    with ClipStatusFile(home) as file:
        assert file.clips == {}


# Names, from the annotation to the status -----------------------------------------------------------------------------


def test_an_odd_but_legal_name_goes_all_the_way(tmp_path, reader):
    names = ["a \"b\" 'c'.mp4", "<script>alert(1)</script>.mp4".replace("/", "∕"), "%s %(x)d {y} #?&.mp4", "日本 ü.mp4"]
    for name in names:
        render(tmp_path / name, frames=10).write_bytes(b"no video")
    rows = "".join(f'{{"prompt": "What?", "video": {json.dumps(name)}, "answer": "B"}}\n' for name in names)
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
    tasks = load_tasks("dm_rl", tmp_path / "rows.jsonl").tasks
    assert [os.path.basename(task.video_path) for task in tasks] == names

    home = tmp_path / "clips.jsonl"
    with ClipStatusFile(home) as file:
        for task in tasks:
            file.append(check_clip(reader, task.video_path))
    assert list(quarantined(home)) == [task.video_path for task in tasks]
    with ClipStatusFile(home) as file:
        assert all(clip.status is ClipStatus.QUARANTINED for clip in file.clips.values())
    rejected = load_tasks("dm_rl", tmp_path / "rows.jsonl", unusable=quarantined(home)).rejected
    assert [row.line for row in rejected] == [1, 2, 3, 4]


# By the hundred -------------------------------------------------------------------------------------------------------

REFUSALS = {"UnsuitableForDecordError", "VideoOpenError", "NoVideoStreamError", "CorruptVideoError", "VideoMemoryError"}
DEADLINE_S = 10.0


def quickstart_clip(path):
    """As the quickstart renders them."""
    flash = Flash(first_frame=15, num_frames=2, colour="red")
    write_mp4(draw(SyntheticClip(48, 12, 56, 10, 30, 1, (flash,), background_seed=1)), 12, path)
    return path


def seeds(folder):
    """Sound clips, small, of every container and codec that data sets come in."""
    yield quickstart_clip(folder / "quickstart.mp4")
    yield render(folder / "fast.mp4", frames=50, muxing={"movflags": "faststart"})
    yield render(folder / "pieces.mp4", frames=50, muxing={"movflags": "frag_keyframe+empty_moov"})
    yield render(folder / "turned.mp4", frames=30, rotation=90)
    yield render(folder / "vp8.webm", "libvpx", frames=30)
    yield render(folder / "h264.mkv", frames=50, options={"bf": "3"})
    yield render(folder / "mpeg4.avi", "mpeg4", frames=50)
    yield render(folder / "h264.ts", frames=50)


def require_harmless(outcomes):
    """Every file was refused by name or read; nobody crashed, hung or grew."""
    kinds, count = Counter(outcome.kind for outcome in outcomes), len(outcomes)
    strange = [outcome for outcome in outcomes if outcome.kind not in REFUSALS | {"frames"}]
    assert not strange, strange
    assert kinds["frames"] >= 0.2 * count and kinds["CorruptVideoError"] and kinds["VideoOpenError"]  # it bites
    assert max(outcome.child_bytes for outcome in outcomes) < 400 * MIB
    assert max(outcome.seconds for outcome in outcomes) < 2 * DEADLINE_S


def test_320_broken_files_are_refused_or_read_and_nothing_crashes_hangs_or_grows(tmp_path):
    files = [one for clip in seeds(tmp_path) for one in mutants(clip.name, clip.read_bytes(), 40, seed=4)]
    before = resident_bytes(os.getpid())
    outcomes = try_all(files, tmp_path, DEADLINE_S)
    require_harmless(outcomes)
    assert len(outcomes) == 320
    assert resident_bytes(os.getpid()) - before < 64 * MIB


def test_decord_takes_no_more_than_its_process_with_it(tmp_path):
    """It aborts where others raise: that ends the process, which is replaced."""
    clips = [render(tmp_path / "h264.mp4", frames=50), render(tmp_path / "vp9.webm", "libvpx-vp9", frames=20)]
    files = [one for clip in clips for one in mutants(clip.name, clip.read_bytes(), 40, seed=6)]
    outcomes = try_all(files, tmp_path, DEADLINE_S, backend="decord")
    require_harmless([one for one in outcomes if one.kind not in ("DecoderDiedError", "VideoTimeoutError")])
    assert len(outcomes) == 80


@pytest.mark.real_data
def test_real_clips_when_broken_are_refused_or_read(real_data_dir, tmp_path):
    clips = sorted([*real_data_dir.glob("videos/*"), *real_data_dir.glob("dynframe_sample/videos/*")])
    files = [one for clip in clips for one in mutants(clip.name, clip.read_bytes(), 8, seed=5)]
    require_harmless(try_all(files, tmp_path, DEADLINE_S))


def test_the_same_seed_breaks_files_the_same_way(tmp_path):
    content = quickstart_clip(tmp_path / "clip.mp4").read_bytes()
    first, again, other = (list(mutants("clip.mp4", content, 26, seed)) for seed in (1, 1, 2))
    assert first == again and first != other and all(one.content != content for one in first if "truncated" in one.name)
