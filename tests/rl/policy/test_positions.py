"""MRoPE positions: text advances by one, scenes by their time, whatever comes next resumes above all of it."""

import time
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from rl.policy.positions import SceneClock, mrope_positions

START, END, PAD, TEXT = 1, 2, 3, 9
IDS = SimpleNamespace(vision_start=START, vision_end=END, video_pad=PAD)


def positions(token_ids, *clocks, tokens_per_second=2):
    return mrope_positions(token_ids, clocks, ids=IDS, tokens_per_second=tokens_per_second)


def clock(*start_s, rows=2, columns=2):
    return SceneClock(start_s, 2 * rows, 2 * columns, 2)


def bare(*clocks):
    """Blocks in the paper's layout, a token of text before each and three after the last."""
    block = [[TEXT, START, *[PAD] * (len(c.times_s_K) * c.tokens_per_scene), END] for c in clocks]
    return [*chain(*block), TEXT, TEXT, TEXT]


def stamped(*clocks, stamp=2):
    """Blocks with `stamp` tokens of text before every scene."""
    scenes = [([TEXT] * stamp + [PAD] * c.tokens_per_scene) * len(c.times_s_K) for c in clocks]
    return [*chain.from_iterable([TEXT, START, *scene, END] for scene in scenes), TEXT, TEXT, TEXT]


def stock_positions(token_ids, grids, second_per_grid, kinds):
    """transformers' own function, called on a bare object that has the two configuration values it reads."""
    vision = Qwen2_5_VLConfig().vision_config
    vision.tokens_per_second = 2
    stock = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
    stock.get_vision_position_ids = lambda *a, **k: Qwen2_5_VLModel.get_vision_position_ids(stock, *a, **k)
    ids = torch.tensor([token_ids])
    found, _ = Qwen2_5_VLModel.get_rope_index(
        stock,
        ids,
        torch.tensor([kinds]),
        image_grid_thw=torch.tensor(grids),
        video_grid_thw=torch.tensor(grids),
        second_per_grid_ts=torch.tensor([second_per_grid]),
    )
    return found[:, 0].numpy()


def test_text_advances_all_axes_by_one():
    assert positions([TEXT] * 4).tolist() == [[0, 1, 2, 3]] * 3


def test_paper_layout_spaces_scenes_by_their_time():
    #       text <vs>  scene at 0 s  scene at 1.5 s  scene at 4 s  </vs> text
    video = clock(0, 1.5, 4)
    assert positions(bare(video), video).tolist() == [
        [0, 1, 2, 2, 2, 2, 5, 5, 5, 5, 10, 10, 10, 10, 11, 12, 13, 14],
        [0, 1, 2, 2, 3, 3, 2, 2, 3, 3, 2, 2, 3, 3, 11, 12, 13, 14],
        [0, 1, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 11, 12, 13, 14],
    ]


def test_text_times_stand_between_scenes_and_each_scene_starts_at_its_own_index():
    #       text <vs> t  t  scene 0 s   t  t  scene 4 s           </vs> text
    video = clock(0, 4)
    assert positions(stamped(video), video).tolist() == [
        [0, 1, 2, 3, 4, 4, 4, 4, 6, 7, 10, 10, 10, 10, 12, 13, 14, 15],
        [0, 1, 2, 3, 4, 4, 5, 5, 6, 7, 10, 10, 11, 11, 12, 13, 14, 15],
        [0, 1, 2, 3, 4, 5, 4, 5, 6, 7, 10, 11, 10, 11, 12, 13, 14, 15],
    ]


def test_scenes_closer_than_the_clock_can_tell_are_bumped_by_one():
    video = clock(0, 0.1, 0.2, 3)
    temporal = positions(bare(video), video)[0]
    assert temporal[2:18:4].tolist() == [2, 3, 4, 8]


def test_a_block_starts_its_own_clock_wherever_its_window_lies():
    early, late = clock(0, 1), clock(70.5, 71.5)
    assert (positions(bare(early), early) == positions(bare(late), late)).all()


def test_float32_times_give_the_positions_of_float64_times():
    start_s = [k / 30 for k in range(0, 3000, 7)]
    exact = SceneClock(tuple(start_s), 2, 2, 2)
    rounded = SceneClock(tuple(np.float32(start_s)), 2, 2, 2)
    assert (positions(bare(exact), exact) == positions(bare(rounded), rounded)).all()


def test_a_single_scene_equals_transformers_image():
    token_ids = bare(clock(3.7, rows=3, columns=5))
    kinds = [1 if token == PAD else 0 for token in token_ids]
    assert (
        positions(token_ids, clock(3.7, rows=3, columns=5)) == stock_positions(token_ids, [[1, 6, 10]], 0.0, kinds)
    ).all()


def test_paper_layout_equals_transformers_video_up_to_the_end_of_the_block():
    video = clock(0, 1, 2, 3, rows=2, columns=3)
    token_ids = bare(video)
    kinds = [2 if token == PAD else 0 for token in token_ids]
    inside = token_ids.index(END)
    ours, stock = positions(token_ids, video), stock_positions(token_ids, [[4, 4, 6]], 1.0, kinds)
    assert (ours[:, :inside] == stock[:, :inside]).all()
    assert ours[0, inside] == ours[:, :inside].max() + 1


blocks = st.lists(
    st.tuples(st.lists(st.floats(0, 20), min_size=1, max_size=6).map(sorted), st.integers(1, 4), st.integers(1, 4)),
    max_size=3,
)


@given(blocks, st.sampled_from([bare, stamped]))
def test_properties_of_any_sequence(drawn, layout):
    clocks = [clock(*start_s, rows=rows, columns=columns) for start_s, rows, columns in drawn]
    token_ids = np.array(layout(*clocks))
    found = positions(token_ids, *clocks)

    text = token_ids != PAD
    assert (found[:, text][0] == found[:, text]).all(), "text has one index on all axes"
    assert (np.diff(found[0]) >= 0).all(), "time never runs backwards"
    assert (np.diff(found[0, text]) >= 1).all(), "text strictly advances"
    for i in np.flatnonzero(text[1:]) + 1:
        if not text[i - 1]:
            assert found[0, i] == found[:, :i].max() + 1, "text resumes above everything before it"
    assert found.shape == (3, len(token_ids)) and found.dtype == np.int64


@pytest.mark.parametrize("layout", [bare, stamped])
def test_earlier_positions_do_not_depend_on_what_follows(layout):
    first, second = clock(0, 1, 2), clock(5, 5.5)
    both, alone = layout(first, second), layout(first)
    shared = len(alone) - 3
    assert (positions(both, first, second)[:, :shared] == positions(alone, first)[:, :shared]).all()


@pytest.mark.parametrize(
    "token_ids, clocks",
    [
        (bare(clock(0, 1)), [clock(0)]),
        (bare(clock(0)), [clock(0, 1)]),
        (bare(clock(0)), []),
        ([TEXT, TEXT], [clock(0)]),
        ([TEXT, PAD, PAD, PAD, PAD, END], [clock(0)]),
    ],
)
def test_placeholders_and_clocks_must_agree(token_ids, clocks):
    with pytest.raises(ValueError, match="placeholder"):
        positions(token_ids, *clocks)


def test_a_long_trajectory_takes_about_a_millisecond():
    video = clock(*np.arange(0, 40, 0.5), rows=4, columns=5)
    token_ids = stamped(video, stamp=4)
    assert len(token_ids) > 1900
    fastest = min(_seconds(lambda: positions(token_ids, video)) for _ in range(20))
    assert fastest < 5e-3  # about 0.5 ms on a quiet machine


def _seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
