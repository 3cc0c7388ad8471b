"""What encoding costs: operations by hand for a tower small enough, by the real one; bytes by torch's profiler."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from rl.config.policy import ScenesConfig
from rl.encode_stats.peak_memory import PeakMemory
from rl.encode_stats.rows import kpixel_per_tflop
from rl.encode_stats.tower import FlopCounter, make_vision_tower, tower_config
from rl.encode_stats.vision_config import TINY, VisionGeometry, named_geometry
from rl.policy.families import QWEN2_5_VL, QWEN3_VL
from rl.policy.geometry import PackedVideo
from rl.policy.vision_tower import run_tower

BOTH = {  # p = 1, m = 2, E = 16, I = 5
    **{"patch_size": 1, "spatial_merge_size": 2, "hidden_size": 16, "num_heads": 2},
    **{"intermediate_size": 5, "out_hidden_size": 3, "depth": 3},
}
SMALL = VisionGeometry.of(QWEN2_5_VL, BOTH | {"window_size": 4, "fullatt_block_indexes": [2]})
SMALL_QWEN3 = VisionGeometry.of(QWEN3_VL, BOTH | {"num_position_embeddings": 4, "deepstack_visual_indexes": [0]})
DYNAMIC, FIXED = ScenesConfig(), ScenesConfig(mode="fixed")
MODES = {"dynamic": DYNAMIC, "fixed": FIXED, "fixed6": ScenesConfig(mode="fixed6")}


def test_a_small_tower_is_counted_by_hand():
    # Three scenes of 1, 2 and 2 frames; frames of 4 x 6 patches: P = 24, N = 72.
    # A kernel frame holds 3 * 1 * 16 = 48 numbers; kernels of 1 and 2 frames out of 6, then the patches of all frames.
    patch_embed = 2 * 6 * 48 * (1 + 2) + 2 * 24 * 48 * (1 + 2 + 2)
    projections = 3 * 2 * 72 * 4 * 16**2  # in each of three blocks: qkv is 3 E², the output one
    # Windows of 4 x 4 and, cut off, 4 x 2 patches: 16² + 8² = 320 per scene, in the two windowed blocks.
    windowed_attention = 2 * 4 * 16 * 3 * 320
    full_attention = 1 * 4 * 16 * 3 * 24**2
    mlp = 3 * 6 * 72 * 16 * 5
    merger = 2 * 18 * 64 * (64 + 3)  # 72 / 4 merged blocks of 4 * 16 numbers
    counted = FlopCounter(SMALL, MODES).count("dynamic", (1, 2, 2), 4, 6)
    assert counted == patch_embed + projections + windowed_attention + full_attention + mlp + merger


def test_a_small_tower_of_qwen3_vl_is_counted_by_hand():
    """Full attention within every scene, an ungated MLP, and a merger more for each of DeepStack's levels."""
    patch_embed = 2 * 6 * 48 * (1 + 2) + 2 * 24 * 48 * (1 + 2 + 2)  # the bias is added element by element
    projections = 3 * 2 * 72 * 4 * 16**2
    attention = 3 * 4 * 16 * 3 * 24**2
    mlp = 3 * 4 * 72 * 16 * 5
    mergers = 2 * 2 * 18 * 64 * (64 + 3)
    counted = FlopCounter(SMALL_QWEN3, MODES).count("dynamic", (1, 2, 2), 4, 6)
    assert counted == patch_embed + projections + attention + mlp + mergers


def test_fixed_pairs_pay_for_two_frames_each_and_for_no_new_kernel():
    # 2 * 24 * 2 * 48 per pair, a single last frame is doubled; the rest is that of three scenes.
    flops = FlopCounter(SMALL, MODES)
    kernels_and_patches = 2 * 6 * 48 * 2 + 3 * 2 * 24 * 48 * 2  # of three dynamic scenes of two frames
    rest = flops.count("dynamic", (2, 2, 2), 4, 6) - kernels_and_patches
    assert flops.count("fixed", (2, 2, 1), 4, 6) == 3 * (2 * 24 * 2 * 48) + rest


@pytest.fixture(scope="module", params=TINY)
def tiny(request):
    return named_geometry(request.param)


def tower_of(geometry, scenes):
    return make_vision_tower(tower_config(geometry), scenes, geometry.family)


@pytest.mark.parametrize(("grid_h", "grid_w"), [(2, 4), (16, 16), (10, 18)])
@pytest.mark.parametrize(("mode", "lengths"), [("fixed", (2, 2, 1)), ("fixed6", (6, 1)), ("dynamic", (1, 3, 3, 7))])
@torch.no_grad()
def test_the_count_on_the_meta_device_is_that_of_the_real_tower_on_the_whole_block(tiny, mode, lengths, grid_h, grid_w):
    tower = tower_of(tiny, MODES[mode])
    # Only attention written out as matrix products is counted by torch on a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run_tower(tower, [noise(lengths, grid_h, grid_w, tiny.patch)])
    assert FlopCounter(tiny, MODES).count(mode, lengths, grid_h, grid_w) == counter.get_total_flops()


def test_a_3b_tower_is_counted_without_its_weights():
    """Numbers of 0.3.0, whose formulas were written by hand."""
    flops = FlopCounter(named_geometry("qwen2.5-vl-3b"), MODES)
    assert flops.parameters == pytest.approx(669e6, rel=1e-3)
    assert flops.count("fixed", (2, 2, 1), 10, 18) == 697_747_783_680
    assert flops.count("dynamic", (1, 3, 3, 7), 16, 16) == 1_329_216_614_400


@pytest.mark.parametrize(("name", "millions"), [("qwen3-vl-4b", 415.3), ("qwen3-vl-8b", 576.4)])
def test_the_towers_of_the_hubs_qwen3_vl_have_their_size(name, millions):
    assert FlopCounter(named_geometry(name), MODES).parameters / 1e6 == pytest.approx(millions, rel=1e-3)


def test_parameters_are_those_of_the_real_tower(tiny):
    tower = tower_of(tiny, FIXED)
    assert FlopCounter(tiny, MODES).parameters == sum(weight.numel() for weight in tower.parameters())


COUNTED = FlopCounter(named_geometry("tiny"), MODES)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_fewer_scenes_of_the_same_frames_never_cost_more(lengths):
    """Merging two scenes saves what their patches cost after the embedding, more than a longer kernel takes."""
    together, apart = (COUNTED.count("dynamic", (*lengths, *last), 8, 12) for last in ((2,), (1, 1)))
    assert together < apart


def test_kpixel_per_tflop_is_thousands_of_pixels_over_10_to_the_12_operations():
    assert kpixel_per_tflop(num_frames=10, height=28, width=56, flops=2 * 10**12) == pytest.approx(7.84)


@pytest.mark.parametrize(("lengths", "grid"), [((), (2, 2)), ((1, 0), (2, 2)), ((1,), (3, 2)), ((1,), (0, 2))])
def test_blocks_that_cannot_be_are_refused(lengths, grid):
    with pytest.raises(ValueError, match=r"scenes must have frames|multiples of 2"):
        COUNTED.count("dynamic", lengths, *grid)


@torch.no_grad()
def test_peak_memory_is_the_largest_sum_alive_at_once():
    weight = torch.zeros(1000)  # 4000 bytes that were there before
    with PeakMemory([weight]) as memory:
        first = weight + 1  # 4000
        second = first + 1  # 8000
        del first  # 4000
        third = second[:500] + 1  # a view is free; 6000
        del second, third
    assert memory.peak_bytes == 8000


@pytest.mark.parametrize(("scenes", "lengths"), [(FIXED, (2,) * 4), (DYNAMIC, (1, 3, 4))])
@torch.no_grad()
def test_peak_memory_of_the_tower_is_what_torchs_profiler_recorded_and_the_blocks_patches_while_they_are_read(
    tiny, scenes, lengths
):
    tower, block = tower_of(tiny, scenes), noise(lengths, 16, 10, tiny.patch)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run_tower(tower, [block])
    alive = np.cumsum([e.nbytes() for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"])
    with PeakMemory([*tower.parameters(), *tower.buffers()]) as memory:
        run_tower(tower, [block])
    most = alive.max() + block.patches_ND.nbytes  # at the worst moment they may have been read already
    assert 0.99 * alive.max() <= memory.peak_bytes <= 1.01 * most


def noise(lengths, grid_h, grid_w, patch):
    """A packed block of random patches."""
    shape = (sum(lengths) * grid_h * grid_w, 3 * patch**2)
    patches_ND = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return PackedVideo(patches_ND, lengths, grid_h, grid_w, tuple(map(float, range(len(lengths)))))
