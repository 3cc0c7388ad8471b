"""The reader: typed refusals of bad files, decoding processes that can hang, crash or be late, and a cache per clip."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from envs.video.decode_process import PROJECT, DecodeProcess
from envs.video.decoder import Decoder
from envs.video.decord_backend import UnsuitableForDecordError, read_frames_decord
from envs.video.frame_cache import FrameCache, read_frames_through
from envs.video.reader import (
    CorruptVideoError,
    DecoderDiedError,
    NoVideoStreamError,
    VideoError,
    VideoOpenError,
    VideoReader,
    VideoTimeoutError,
    index_video,
    read_frames,
)
from tests.calibration import within
from tests.envs.video.clips import HEIGHT, WIDTH, cut_by_copy, numbers_in, render, render_silence

SIZE = (HEIGHT, WIDTH)
COARSE_S = tuple(i / 2 for i in range(8))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return str(render(tmp_path_factory.mktemp("clip") / "clip.mp4", options={"bf": "3"}))


@pytest.fixture
def reader():
    with VideoReader(workers=1, timeout_s=20) as reader:
        yield reader


# Files that are no videos ---------------------------------------------------------------------------------------------


def half_of(path, target):
    content = path.read_bytes()
    target.write_bytes(content[: len(content) // 2])
    return target


def bad_files(folder):
    whole = render(folder / "whole.mp4")
    fast_start = render(folder / "fast.mp4", muxing={"movflags": "faststart"})
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("this is not a video" * 100)
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "fifo.mp4")
    return {
        "missing": (folder / "nowhere.mp4", VideoOpenError),
        "zero bytes": (folder / "empty.mp4", VideoOpenError),
        "text": (folder / "text.mp4", VideoOpenError),
        "folder": (folder / "folder.mp4", VideoOpenError),
        "fifo": (folder / "fifo.mp4", VideoOpenError),
        "header lost": (half_of(whole, folder / "headless.mp4"), VideoOpenError),
        "truncated": (half_of(fast_start, folder / "truncated.mp4"), CorruptVideoError),
        "audio only": (render_silence(folder / "sound.m4a"), NoVideoStreamError),
    }


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_files_are_refused_with_path_problem_and_remedy(tmp_path, workers):
    with VideoReader(workers=workers, timeout_s=20) as reader:
        for name, (path, expected) in bad_files(tmp_path).items():
            with pytest.raises(VideoError) as refusal:
                reader.frames(str(path), (0.0,), SIZE)
            assert type(refusal.value) is expected, name
            assert str(refusal.value).startswith(f"{path}: ") and refusal.value.remedy, name


def test_a_file_that_changes_is_indexed_anew(tmp_path):
    path = render(tmp_path / "clip.mp4", frames=50)
    assert index_video(path).duration_s == pytest.approx(2.0)

    render(path, frames=75)
    assert index_video(path).duration_s == pytest.approx(3.0)


# Decoding processes ---------------------------------------------------------------------------------------------------


def test_a_process_gives_what_decoding_in_place_gives(clip, reader):
    here = VideoReader(workers=0)
    theirs, ours = reader.frames(clip, (3.0, 0.5, 1.2), SIZE), here.frames(clip, (3.0, 0.5, 1.2), SIZE)

    assert numbers_in(theirs[0]) == [75, 12, 30] and (theirs[0] == ours[0]).all() and theirs[1:] == ours[1:]
    described = reader.describe(clip)
    assert (described.duration_s, described.native_fps, described.height, described.width) == (4.0, 25.0, *SIZE)


@pytest.mark.thorough
def test_a_process_that_stands_still_is_killed_and_replaced(clip):
    process = DecodeProcess("pyav", frame_cache_bytes=0, timeout_s=20, stall_timeout_s=1.5)
    process.describe(clip)
    hung = process.pid
    os.kill(hung, signal.SIGSTOP)

    started = time.monotonic()
    with pytest.raises(VideoTimeoutError, match=r"clip\.mp4: .* for 1\.5 s.*video\.decode_stall_timeout_s"):
        process.frames(clip, (0.0,), SIZE)
    assert 1.4 < time.monotonic() - started < within(3.0)

    assert numbers_in(process.frames(clip, (1.0,), SIZE)[0]) == [25] and process.pid not in (None, hung)
    process.close()


def killed_when_asked(process):
    """Stopped, so that it cannot answer, and killed while it is waited for."""
    os.kill(process.pid, signal.SIGSTOP)
    threading.Timer(0.3, os.kill, (process.pid, signal.SIGKILL)).start()


@pytest.mark.thorough
def test_a_process_that_is_killed_in_a_request_is_replaced_and_the_next_one_answers(clip):
    process = DecodeProcess("pyav", frame_cache_bytes=0, timeout_s=20)
    process.describe(clip)
    killed_when_asked(process)

    assert numbers_in(process.frames(clip, (1.0,), SIZE)[0]) == [25]
    assert process.replaced == {"death": 1}
    process.close()


@pytest.mark.thorough
def test_a_request_over_which_two_processes_die_is_a_typed_error(clip, monkeypatch):
    process = DecodeProcess("pyav", frame_cache_bytes=0, timeout_s=20)
    process.describe(clip)
    start = process._start
    monkeypatch.setattr(process, "_start", lambda path: (start(path), killed_when_asked(process)))
    killed_when_asked(process)

    with pytest.raises(DecoderDiedError, match="SIGKILL"):
        process.frames(clip, (0.0,), SIZE)
    monkeypatch.undo()
    assert numbers_in(process.frames(clip, (1.0,), SIZE)[0]) == [25]
    process.close()


def test_a_process_that_died_between_requests_is_replaced_unnoticed(clip, reader):
    reader.describe(clip)
    [process] = reader._decoders
    os.kill(process.pid, signal.SIGKILL)
    process._process.wait()

    assert numbers_in(reader.frames(clip, (1.0,), SIZE)[0]) == [25]


@pytest.mark.thorough
def test_one_clip_that_hangs_does_not_spend_the_deadline_of_the_next(clip):
    """Requests wait their turn; the clock of each starts with its own work."""
    process = DecodeProcess("pyav", frame_cache_bytes=0, timeout_s=20, stall_timeout_s=1.0)
    process.describe(clip)
    os.kill(process.pid, signal.SIGSTOP)
    outcomes = []

    def ask():
        try:
            outcomes.append(numbers_in(process.frames(clip, (1.0,), SIZE)[0]))
        except VideoTimeoutError:
            outcomes.append("timeout")

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    process.close()
    assert sorted(outcomes, key=str) == [[25], [25], "timeout"]


def test_many_threads_share_a_reader(clip):
    with VideoReader(workers=2, timeout_s=30) as reader:
        found = {}

        def ask(number):
            found[number] = numbers_in(reader.frames(clip, (number / 25,), SIZE)[0])

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(0, 100, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {number: [number] for number in range(0, 100, 5)}


def test_closing_ends_the_processes_and_a_later_request_starts_one(clip):
    reader = VideoReader(workers=1)
    reader.describe(clip)
    pid = reader._decoders[0].pid
    reader.close()

    assert not os.path.exists(f"/proc/{pid}")
    assert reader.describe(clip).num_frames == 100
    reader.close()


@pytest.mark.thorough
def test_a_process_does_not_outlive_its_parent(clip):
    script = (
        "from envs.video.decode_process import DecodeProcess\n"
        f"process = DecodeProcess('pyav', 0, 20); process.describe({clip!r}); print(process.pid, flush=True)\n"
        "import os; os._exit(0)\n"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PROJECT, check=True)
    deadline = time.monotonic() + within(10)
    while os.path.exists(f"/proc/{printed.stdout.strip()}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{printed.stdout.strip()}")


def test_the_decoding_process_loads_no_heavy_library():
    script = (
        "import envs.video.decode_process, sys; print({'torch', 'decord', 'numba', 'ray', 'vllm'} & set(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PROJECT, check=True)
    assert loaded.stdout.strip() == "set()"


def test_an_unknown_backend_is_refused_at_once():
    with pytest.raises(ValueError, match="pyav, decord"):
        VideoReader(backend="opencv")


# The cache ------------------------------------------------------------------------------------------------------------


def test_windows_after_a_coarse_pass_cost_no_decoding(tmp_path):
    path = render(tmp_path / "clip.mp4")
    cache, index = FrameCache(64 << 20), index_video(path)
    read_frames_through(cache, index, COARSE_S, SIZE)
    os.unlink(path)  # whatever comes now comes from memory

    pixels, times_s, damaged = read_frames_through(cache, index, (1.0, 1.04, 1.5), SIZE)
    assert numbers_in(pixels) == [25, 26, 37] and times_s == (1.0, 1.04, 1.48) and damaged == 0
    assert (cache.hits, cache.misses) == (1, 1)


@pytest.mark.parametrize("size", [SIZE, (28, 56)])
@pytest.mark.parametrize("budget_bytes", [0, 600_000, 64 << 20])
def test_the_store_never_changes_a_pixel(clip, size, budget_bytes):
    """Kept as decoded, kept as small RGB, or not at all: the answers are equal."""
    cache, index = FrameCache(budget_bytes), index_video(clip)
    for times_s in (COARSE_S, (2.0, 0.3), (3.9, 3.9, 0.0)):
        stored, plain = read_frames_through(cache, index, times_s, size), read_frames(index, times_s, size)
        assert (stored[0] == plain[0]).all() and stored[1:] == plain[1:]
    assert cache.held_bytes <= budget_bytes


def test_the_store_keeps_to_its_budget_and_drops_the_oldest(tmp_path):
    indices = [index_video(render(tmp_path / f"{i}.mp4", frames=50)) for i in range(3)]
    one_clip = indices[0].num_frames * indices[0].frame_bytes
    cache = FrameCache(2 * one_clip)
    for index in indices:
        read_frames_through(cache, index, (0.0, 0.5, 1.0, 1.5, 1.9), SIZE)

    assert cache.held_bytes == 2 * one_clip
    assert [cache.find(index, None) is not None for index in indices] == [False, True, True]


def test_of_a_window_alone_only_its_own_frames_are_kept(clip):
    cache, index = FrameCache(64 << 20), index_video(clip)
    for _ in range(2):
        read_frames_through(cache, index, (1.0, 1.5), SIZE)

    assert cache.held_bytes == 2 * HEIGHT * WIDTH * 3
    assert (cache.hits, cache.misses) == (1, 1)  # a sibling that looks at the same window decodes nothing


# decord ---------------------------------------------------------------------------------------------------------------


def test_decord_agrees_with_pyav_on_plain_files(clip):
    index, times_s = index_video(clip), (3.0, 0.5, 1.2, 0.0, 3.99)
    theirs, ours = read_frames_decord(index, times_s, SIZE), read_frames(index, times_s, SIZE)

    assert numbers_in(theirs[0]) == numbers_in(ours[0]) == [75, 12, 30, 0, 99]
    assert theirs[1:] == ours[1:]
    assert np.abs(theirs[0].astype(int) - ours[0]).mean() < 3


def unsuitable_files(folder):
    plain = render(folder / "plain.mp4", gop=1000)
    return {
        "edit list": cut_by_copy(plain, folder / "cut.mp4", 1.4),
        "2 video streams": render(folder / "two.mp4", streams=2),
        "variable frame rate": render(folder / "vfr.mp4", times_ms=[0, 40, 55, 170, 180, 260, 300]),
        "turned": render(folder / "turned.mp4", frames=10, rotation=90),
        "open groups": render(folder / "open.mp4", "mpeg4", options={"bf": "2"}),
        "seek table": render(folder / "clip.ts"),
        "first packet only": render(folder / "mpeg4.mp4", "mpeg4", frames=10),
    }


def test_decord_is_kept_from_files_it_would_get_wrong(tmp_path):
    reader = VideoReader(backend="decord", workers=0)
    for reason, path in unsuitable_files(tmp_path).items():
        with pytest.raises(UnsuitableForDecordError, match=rf"{reason}.*set video\.backend=pyav"):
            reader.frames(str(path), (0.1,), SIZE)


def test_decord_in_a_process(clip):
    with VideoReader(backend="decord", workers=1, timeout_s=30) as reader:
        assert numbers_in(reader.frames(clip, (1.0, 2.0), SIZE)[0]) == [25, 50]


def test_decord_says_what_to_do_about_av1(tmp_path):
    path = render(tmp_path / "av1.mp4", "libsvtav1", frames=10, options={"preset": "12"})
    with pytest.raises(VideoOpenError, match=r"decord.*video\.backend=pyav"):
        Decoder("decord", 0).frames(str(path), (0.1,), SIZE)


def test_rendering_av1_leaves_the_priority_of_the_process_alone(tmp_path):
    render(tmp_path / "av1.mp4", "libsvtav1", frames=3, options={"preset": "12"})
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
