"""Small details: nothing of the dot's colour is in frames of coarse size, and all of it in a zoom."""

import dataclasses
import json

import numpy as np
import pytest

from envs.data.dataset import load_tasks, load_traces
from envs.synthetic.clip import DETAIL_COLOURS, write_mp4
from envs.synthetic.dots import TINT, define_dot_clip, draw_dots, jittered_zoom, mark_places, shown_dot
from envs.synthetic.traces import BLIND
from envs.synthetic.world import QuickstartWorld, cold_start_traces, render_world, world_rows
from envs.video.reader import VideoReader

WORLD = QuickstartWorld(6, 2, size=224, question_kinds=("dot",), duration_s=4.0)


@pytest.fixture(scope="module", params=[4, 8], ids="mark of {} cells".format)
def clips(request, tmp_path_factory):
    """The same clip with each of the colours."""
    folder = tmp_path_factory.mktemp("dots")
    clip = define_dot_clip(dataclasses.replace(WORLD, dot_mark=request.param), "dot", "red", np.random.default_rng(3))
    shown = {colour: dataclasses.replace(clip, colour=colour) for colour in DETAIL_COLOURS}
    for colour, one in shown.items():
        write_mp4(draw_dots(one), one.native_fps, folder / f"{colour}.mp4")
    return shown, folder


def frames_of(clips, colour, size, fps):
    _, folder = clips
    times_s = np.arange(round(4 * fps)) / fps
    with VideoReader(workers=0) as reader:
        return reader.frames(str(folder / f"{colour}.mp4"), times_s, (size, size))[0].astype(int)


@pytest.mark.parametrize("fps", [1.0, 12.0])
def test_frames_of_coarse_size_do_not_tell_the_colour_at_any_rate(clips, fps):
    frames = [frames_of(clips, colour, 28, fps) for colour in DETAIL_COLOURS]
    assert max(np.abs(one - frames[0]).max() for one in frames) <= 6  # of 255, in any pixel: what compression leaves
    clip = clips[0]["red"]
    event_T = slice(round(clip.event_span_s[0] * fps), round(clip.event_span_s[1] * fps))
    middle = clip.mark // 2
    rows_H, columns_W = (slice(first + middle - 1, first + middle + 1) for first in (clip.row, clip.column))
    tiles_C = [one[event_T, rows_H, columns_W].mean((0, 1, 2)) for one in frames]
    assert max(np.abs(tile_C - tiles_C[0]).max() for tile_C in tiles_C) <= 3 < TINT  # in the mean, below a chance tint


def test_frames_of_coarse_size_tell_where_and_when_the_mark_is(clips):
    clip = clips[0]["red"]
    frames_THW = frames_of(clips, "red", 28, 12.0).mean(-1)
    during = slice(clip.event_first_frame, clip.event_end_frame)
    mark = frames_THW[during, clip.row, clip.column : clip.column + clip.mark]
    assert mark.min() > 200 > np.delete(frames_THW, np.r_[during], axis=0).max()


def test_the_clips_own_pixels_tell_the_colour(clips):
    clip, middle = clips[0]["red"], {}
    left, top = ((place + clip.mark // 2) * clip.cell for place in (clip.column, clip.row))
    for colour in DETAIL_COLOURS:
        frames = frames_of(clips, colour, 224, 12.0)
        middle[colour] = frames[clip.event_first_frame + 2, top - 2 : top + 2, left - 2 : left + 2].mean((0, 1))
    for colour, value in middle.items():
        nearest = min(DETAIL_COLOURS, key=lambda other: np.abs(value - DETAIL_COLOURS[other]).sum())
        assert nearest == colour


def test_rows_say_where_the_mark_is_and_traces_zoom_roughly_there(tmp_path):
    files = render_world(WORLD, tmp_path)
    (task, *_) = load_tasks("dm_rl", files.train_jsonl, files.folder).tasks
    assert len(task.extra["box"]) == 4 and task.evidence_span is not None
    rows = world_rows(WORLD, "train")
    traces = cold_start_traces(rows, 0.5, 0, seed=0, traces_per_row=3)
    path = tmp_path / "traces.json"
    path.write_text(json.dumps(traces))
    loaded = load_traces("dm_cot", path, files.folder)
    assert len(loaded.traces) == 18 and not loaded.rejected
    assert all("<zoom>" in trace.replies[0] and trace.replies[0].endswith("</box>") for trace in loaded.traces)


def test_a_trace_names_the_colour_where_its_zoom_shows_the_dot_and_guesses_elsewhere():
    (row, *_) = world_rows(WORLD, "train")
    middle_s = (row["gt_span_start"] + row["gt_span_end"]) / 2
    assert shown_dot(row, middle_s, row["box"]) == row["colour"]
    assert shown_dot(row, row["gt_span_end"] + 0.1, row["box"]) is None
    beside = (row["dot_box"][2], 0.0, 1000.0, 1000.0)
    assert shown_dot(row, middle_s, beside) is None


def test_without_zooms_traces_look_and_guess_since_no_look_shows_the_colour():
    said = [
        trace["conversations"][1]["value"]
        for trace in cold_start_traces(world_rows(WORLD, "train"), 0.5, 0, seed=0, traces_per_row=8, zooms=False)
    ]
    assert all("<span>" in one and "<zoom>" not in one and BLIND in one for one in said)
    assert {one[-len("A</answer>")] for one in said} == set("ABCD")


def test_jittered_zooms_stay_in_the_clip_and_near_the_mark():
    rng = np.random.default_rng(0)
    for row in world_rows(WORLD, "train"):
        for _ in range(20):
            time_s, box = jittered_zoom(row, 1.0, 80.0, rng)
            assert 0 <= time_s < row["duration_s"] and min(box) >= 0 and max(box) <= 1000
            assert np.abs(np.subtract(box, row["box"])).max() <= 86


@pytest.mark.parametrize(
    ("size", "dot_px", "dot_mark"), [(224, 7, 4), (224, 6, 4), (100, 8, 4), (56, 8, 4), (112, 8, 8)]
)
def test_a_dot_that_does_not_divide_the_frame_is_refused(size, dot_px, dot_mark):
    with pytest.raises(ValueError, match="dot_px must be a multiple of 4"):
        dataclasses.replace(WORLD, size=size, dot_px=dot_px, dot_mark=dot_mark)


@pytest.mark.parametrize("change", [{"dot_mark": 2}, {"dot_mark": 5}, {"dot_places": 8}, {"dot_places": -1}])
def test_a_mark_without_a_middle_and_places_that_do_not_fit_are_refused(change):
    (key,) = change
    with pytest.raises(ValueError, match=f"{key} must be"):
        dataclasses.replace(WORLD, **change)


@pytest.mark.parametrize(
    ("mark", "places", "begin_at"),
    [(4, 0, [0, 4, 8, 12, 16, 20, 24]), (4, 1, [12]), (4, 2, [4, 20]), (8, 2, [0, 16]), (8, 0, [0, 8, 16])],
)
def test_places_of_a_mark_are_evenly_spread_and_do_not_overlap(mark, places, begin_at):
    assert mark_places(224, 8, mark, places) == begin_at
    world = dataclasses.replace(WORLD, dot_mark=mark, dot_places=places)
    drawn = [define_dot_clip(world, "dot", "red", np.random.default_rng(seed)) for seed in range(60)]
    assert {clip.column for clip in drawn} | {clip.row for clip in drawn} == set(begin_at)


def test_worlds_without_dots_are_called_what_they_were():
    named = dataclasses.replace(QuickstartWorld(), dot_px=8, dot_mark=4, dot_places=0)
    assert QuickstartWorld().fingerprint == named.fingerprint
