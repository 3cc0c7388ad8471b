"""The coarse frames: which, how many, how large."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.initial_observation import (
    CoarseFrameRules,
    coarse_frame_times,
    decode,
    fit_visual_tokens,
    make_initial_observation,
    unseen_frames,
)
from envs.prompts import PromptFormat, initial_prompt
from tests.envs.setting import make_processor, make_reader, make_task, write_clip


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return make_processor(tmp_path_factory.mktemp("policy"))


class Described:
    """What a reader says of a clip."""

    def __init__(self, duration_s, height, width):
        self.duration_s, self.native_fps, self.height, self.width = duration_s, 30.0, height, width


def test_frames_are_uniform_over_the_whole_clip():
    rules = CoarseFrameRules(fps=2.0, min_frames=4, max_frames=64)
    assert coarse_frame_times(3.0, 30.0, rules) == (0.0, 0.5, 1.0, 1.5, 2.0, 2.5)


def test_a_short_clip_gets_the_fewest_frames_and_a_long_one_the_most():
    rules = CoarseFrameRules(fps=1.0, min_frames=4, max_frames=8)
    assert coarse_frame_times(2.0, 30.0, rules) == (0.0, 0.5, 1.0, 1.5)
    assert coarse_frame_times(80.0, 30.0, rules) == tuple(10.0 * i for i in range(8))


def test_no_frame_is_shown_twice_to_reach_the_minimum():
    assert coarse_frame_times(0.1, 20.0, CoarseFrameRules(min_frames=4)) == (0.0, 0.05)


@given(
    duration=st.floats(0.01, 1e5), native_fps=st.floats(0.0, 120.0), fps=st.floats(0.1, 10.0), most=st.integers(1, 99)
)
def test_times_lie_in_the_clip_and_in_the_limits(duration, native_fps, fps, most):
    times = coarse_frame_times(duration, native_fps, CoarseFrameRules(fps=fps, min_frames=1, max_frames=most))
    assert 1 <= len(times) <= most
    assert all(0.0 <= t < duration for t in times)
    assert list(times) == sorted(times)


def test_size_is_a_multiple_of_28_within_the_pixels_of_a_frame(processor):
    rules = CoarseFrameRules(max_pixels=50_000)
    _, (height, width) = fit_visual_tokens((0.0, 1.0), Described(2.0, 720, 1280), processor, rules)
    assert (height % 28, width % 28) == (0, 0) and height * width <= 50_000


def test_over_the_token_budget_frames_shrink_before_they_become_fewer(processor):
    times = tuple(float(i) for i in range(16))
    rules = CoarseFrameRules(max_pixels=100_000, max_visual_tokens=256)
    kept, size = fit_visual_tokens(times, Described(16.0, 270, 480), processor, rules)
    assert kept == times
    assert processor.visual_tokens(unseen_frames(kept, size)) <= 256


def test_where_frames_cannot_shrink_further_there_are_fewer_over_the_same_clip(processor):
    times = tuple(float(i) for i in range(16))
    kept, size = fit_visual_tokens(times, Described(16.0, 270, 480), processor, CoarseFrameRules(max_visual_tokens=8))
    assert kept == tuple(2.0 * i for i in range(8))
    assert processor.visual_tokens(unseen_frames(kept, size)) <= 8


def test_neighbours_standing_in_for_damaged_frames_are_reported(tmp_path, caplog):
    clip = write_clip(tmp_path / "clip.mp4", seconds=2.0, fps=10)

    class OneDamaged:
        def frames(self, *asked):
            with make_reader() as reader:
                pixels_THWC, shown_s_T, _ = reader.frames(*asked)
            return pixels_THWC, shown_s_T, 1

    decode(OneDamaged(), str(clip), (0.0, 1.0), (56, 56))
    assert "1 of 2 frames are damaged" in caplog.text


def test_opening_a_clip_decodes_cuts_and_writes_the_prompt(processor, tmp_path):
    task = make_task(write_clip(tmp_path / "clip.mp4", seconds=4.0, fps=10))
    rules = CoarseFrameRules(fps=2.0, min_frames=4, max_frames=8, max_pixels=3136)
    with make_reader() as reader:
        initial = make_initial_observation(task, processor=processor, reader=reader, rules=rules, form=PromptFormat())
    assert initial.frames.timestamps_s_T == pytest.approx([0.5 * i for i in range(8)])
    assert sum(initial.frames.scene_lengths) == 8
    assert initial.token_ids == initial_prompt(task.question, initial.frames, processor, PromptFormat())
    assert initial.decode_s > 0 and initial.segment_s > 0
