"""The quickstart world keeps its promise: coarse frames never show the detail, the right look always does."""

import collections
import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from envs.retrieval import RetrievalRules, parse_call
from envs.synthetic.clip import DETAIL_COLOURS, lowest_sufficient_fps
from envs.synthetic.world import QuickstartWorld, cold_start_traces, render_world, shown_answer, world_rows
from rl.trajectory import RetrievalCall

pytestmark = pytest.mark.thorough

PROJECT = Path(__file__).parents[3]
KINDS = ("colour", "count", "order")
WORLD = QuickstartWorld(train_clips=24, held_out_clips=12, seed=3, question_kinds=KINDS)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return render_world(WORLD, tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def clips(files):
    """(row, every decoded frame) of the training split."""
    rows = [json.loads(line) for line in files.train_jsonl.read_text().splitlines()]
    return [(row, decode_all(files.folder / row["video"])) for row in rows]


def decode_all(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def colour_in_the_middle(pixels_HWC):
    """Which detail colour fills the middle, or None: nearest prototype, and near."""
    middle_C = pixels_HWC[16:40, 16:40].reshape(-1, 3).mean(axis=0)
    distance, name = min((np.linalg.norm(middle_C - rgb), name) for name, rgb in DETAIL_COLOURS.items())
    return name if distance < 40 else None


def frames_at(frames, times_s):
    return [frames[int(time_s * WORLD.native_fps + 1e-6)] for time_s in times_s]


def retrieval_times(start_s, end_s, fps, phase_s=0.0):
    """Floor(window * rate) times, in centiseconds."""
    count = int((end_s - start_s) * fps + 1e-9)
    return [int(100 * (start_s + phase_s) + 100 * i / fps) / 100 for i in range(count)]


@pytest.mark.parametrize("coarse_fps", [1, 2])
def test_coarse_frames_never_show_the_detail(clips, coarse_fps):
    for _, frames in clips:
        coarse = frames_at(frames, np.arange(0, WORLD.duration_s, 1 / coarse_fps))
        assert {colour_in_the_middle(pixels) for pixels in coarse} == {None}


def test_coarse_frames_show_the_event(clips):
    for row, frames in clips:
        lit = [pixels[:4].mean() > 110 for pixels in frames_at(frames, range(8))]
        assert lit == [row["gt_span_start"] <= second < row["gt_span_end"] for second in range(8)]


def test_the_evidence_window_at_the_evidence_rate_shows_every_flash_in_order(clips):
    for row, frames in clips:
        looked = frames_at(frames, retrieval_times(row["gt_span_start"], row["gt_span_end"], row["fps"]))
        seen = [colour_in_the_middle(pixels) for pixels in looked]
        flashes = [name for before, name in zip([None, *seen], seen, strict=False) if name and name != before]
        assert flashes == [colour for _, _, colour in row["flashes_s"]]


def test_a_grid_at_the_evidence_rate_shows_every_flash_at_any_phase(clips):
    for row, frames in clips:
        for phase_s in np.arange(0, 1 / row["fps"], 0.01):
            times_s = retrieval_times(0, WORLD.duration_s - 1, row["fps"], phase_s)
            for start_s, end_s, colour in row["flashes_s"]:
                if end_s <= times_s[-1]:
                    shown = frames_at(frames, [t for t in times_s if start_s - 1e-6 <= t < end_s - 1e-6])
                    assert shown and all(colour_in_the_middle(pixels) == colour for pixels in shown)


@pytest.mark.parametrize(("flash_frames", "fps"), [(5, 3), (4, 4), (3, 4), (2, 7)])
def test_lowest_sufficient_fps(flash_frames, fps):
    assert lowest_sufficient_fps(flash_frames, native_fps=12) == fps

    one_less = retrieval_times(0, 100, fps - 1)
    assert max(np.diff(one_less)) > flash_frames / 12  # a grid one slower can step over the flash


def test_a_flash_of_one_frame_has_no_sufficient_integer_rate():
    with pytest.raises(ValueError, match="too short"):
        lowest_sufficient_fps(1, native_fps=12)


def test_letters_and_choices_are_balanced():
    rows = world_rows(QuickstartWorld(train_clips=96, question_kinds=KINDS), "train")
    for kind in KINDS:
        asked = [row for row in rows if row["kind"] == kind]
        assert set(collections.Counter(row["answer"] for row in asked).values()) == {8}
        assert set(collections.Counter(right_choice(row) for row in asked).values()) == {8}


def right_choice(row):
    return row["options"]["ABCD".index(row["answer"])]


def test_the_tempo_is_told_by_the_border_and_not_by_the_answer(clips):
    for row, frames in clips:
        red, green, _ = frames_at(frames, [row["gt_span_start"]])[0][:6].reshape(-1, 3).mean(axis=0)
        hue = "cyan" if red < 120 else "magenta" if green < 120 else "white"
        assert {"cyan": 3, "magenta": 4, "white": 7}[hue] == row["fps"]


def test_options_can_be_left_in_order():
    rows = world_rows(QuickstartWorld(train_clips=8, shuffle_options=False), "train")
    assert {tuple(row["options"]) for row in rows} == {tuple(DETAIL_COLOURS)}


def test_the_same_seed_gives_the_same_bytes(files, tmp_path):
    again = render_world(WORLD, tmp_path, workers=2)

    assert again.train_jsonl.read_bytes() == files.train_jsonl.read_bytes()
    for video in sorted(files.folder.glob("*/*.mp4")):
        assert (again.folder / video.relative_to(files.folder)).read_bytes() == video.read_bytes()


def test_the_bytes_do_not_depend_on_what_memory_held_before(tmp_path):
    """Fresh memory filled with different values must not reach the files: encoders have read it unwritten."""
    script = (
        "import sys; from envs.synthetic.world import *\n"
        "world = QuickstartWorld(24, 12, seed=3, question_kinds=('colour', 'count', 'order'))\n"
        "render_world(world, sys.argv[1])"
    )
    rendered = {}
    for filler in ("0", "1", "85"):
        environment = {**os.environ, "MALLOC_PERTURB_": filler}
        subprocess.run([sys.executable, "-c", script, str(tmp_path / filler)], check=True, cwd=PROJECT, env=environment)
        videos = sorted((tmp_path / filler).rglob("*.mp4"))
        rendered[filler] = {f"{video.parent.name}/{video.name}": video.read_bytes() for video in videos}
    assert len(rendered["0"]) == 36 and rendered["0"] == rendered["1"] == rendered["85"]


def test_splits_share_no_clip(files):
    contents = [video.read_bytes() for video in files.folder.glob("*/*.mp4")]
    assert len(set(contents)) == WORLD.train_clips + WORLD.held_out_clips
    assert world_rows(QuickstartWorld(seed=1), "train") != world_rows(QuickstartWorld(seed=2), "train")


def test_a_rendered_world_is_found_again_and_nothing_half_made_is_left(files):
    before = sorted(path.name for path in files.folder.parent.iterdir())
    ticks = []

    assert render_world(WORLD, files.folder.parent, progress=lambda *tick: ticks.append(tick)) == files
    assert ticks == [] and before == [files.folder.name]


def test_progress_counts_every_clip(tmp_path):
    ticks = []
    render_world(QuickstartWorld(train_clips=2, held_out_clips=1), tmp_path, progress=lambda *tick: ticks.append(tick))
    assert ticks == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"native_fps": 12.5}, "whole multiple"),
        ({"native_fps": 6.0}, "at least 4 times"),
        ({"question_kinds": ("smell",)}, "smell"),
        ({"size": 55}, "even"),
        ({"duration_s": 7.5}, "coarse intervals"),
    ],
)
def test_an_impossible_world_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        QuickstartWorld(**wrong)


def test_traces_answer_what_their_frames_show(clips):
    rows = [row for row, _ in clips]
    traces = cold_start_traces(rows, window_jitter_s=0.0, fps_jitter=0, seed=0)
    for row, trace in zip(rows, traces, strict=True):
        human, gpt = (turn["value"] for turn in trace["conversations"])
        window = f"<span>{row['gt_span_start']:.1f} - {row['gt_span_end']:.1f}</span><fps>{row['fps']}</fps>"
        assert human == row["prompt"] and human.startswith("<video>\n") and trace["video"] == [row["video"]]
        assert gpt == (
            f"<think>Look closer.{window}<video>I see {right_choice(row)}.</think><answer>{row['answer']}</answer>"
        )


@pytest.mark.parametrize(
    ("duration_s", "coarse_fps", "native_fps"),
    [(6.25, 4.0, 48), (0.75, 4.0, 48), (22 / 3, 3.0, 60), (1.0, 3.0, 60), (8.0, 1.0, 12)],
)
def test_jittered_looks_stay_in_the_clip_and_are_written_as_it_has_them(duration_s, coarse_fps, native_fps):
    world = QuickstartWorld(8, 1, duration_s, native_fps, coarse_fps=coarse_fps, question_kinds=("colour", "order"))
    rows = world_rows(world, "train")
    for trace in cold_start_traces(rows, window_jitter_s=1.0, fps_jitter=2, seed=0, traces_per_row=8):
        text = trace["conversations"][1]["value"].partition("<video>")[0]
        rules = RetrievalRules(max_fps=100.0, min_window_s=0.0, max_frames=10_000)
        call = parse_call(text, duration_s=duration_s, native_fps=native_fps, rules=rules)
        assert isinstance(call, RetrievalCall) and call.clamped == (), text


def test_jittered_traces_leave_something_to_learn():
    rows = world_rows(QuickstartWorld(), "train")
    traces = cold_start_traces(rows, window_jitter_s=0.5, fps_jitter=2, seed=0, traces_per_row=4)
    blind = [trace for trace in traces if "I see nothing." in trace["conversations"][1]["value"]]
    letters = collections.Counter(trace["conversations"][1]["value"][-10] for trace in blind)

    assert 0.1 < len(blind) / len(traces) < 0.4
    assert all(0.15 < letters[letter] / len(blind) < 0.35 for letter in "ABCD")
    assert traces == cold_start_traces(rows, window_jitter_s=0.5, fps_jitter=2, seed=0, traces_per_row=4)


def test_what_is_shown_is_what_the_pixels_show(clips):
    """The trace's idea of visibility agrees with decoded frames, for windows and rates of every kind."""
    rng = np.random.default_rng(0)
    for row, frames in clips:
        start_s = round(float(rng.uniform(0, 6)), 1)
        end_s, fps = start_s + 1.5, int(rng.integers(1, 13))
        looked = frames_at(frames, retrieval_times(start_s, end_s, fps))
        assert (shown_answer(row, start_s, end_s, fps) is not None) == any(map(colour_in_the_middle, looked))
