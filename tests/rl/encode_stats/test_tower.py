"""What encoding costs: operations by hand for a tower small enough, by the real one; bytes by torch's profiler."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig

from rl.config.policy import ScenesConfig, TinyPolicyConfig
from rl.encode_stats.peak_memory import PeakMemory
from rl.encode_stats.rows import kpixel_per_tflop
from rl.encode_stats.tower import FlopCounter
from rl.encode_stats.vision_config import QWEN2_5_VL_3B
from rl.policy.geometry import PackedVideo
from rl.policy.tiny import vision_section
from rl.policy.vision_tower import make_vision_tower, run_tower

SMALL = {  # p = 1, m = 2, windows of 4 pixels, E = 16, I = 5
    **{"patch_size": 1, "spatial_merge_size": 2, "window_size": 4, "hidden_size": 16, "num_heads": 2},
    **{"intermediate_size": 5, "out_hidden_size": 3, "depth": 3, "fullatt_block_indexes": [2]},
}
TINY = vision_section(TinyPolicyConfig())
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


def test_fixed_pairs_pay_for_two_frames_each_and_for_no_new_kernel():
    # 2 * 24 * 2 * 48 per pair, a single last frame is doubled; the rest is that of three scenes.
    flops = FlopCounter(SMALL, MODES)
    kernels_and_patches = 2 * 6 * 48 * 2 + 3 * 2 * 24 * 48 * 2  # of three dynamic scenes of two frames
    rest = flops.count("dynamic", (2, 2, 2), 4, 6) - kernels_and_patches
    assert flops.count("fixed", (2, 2, 1), 4, 6) == 3 * (2 * 24 * 2 * 48) + rest


@pytest.mark.parametrize(("grid_h", "grid_w"), [(2, 4), (16, 16), (10, 18)])
@pytest.mark.parametrize(("mode", "lengths"), [("fixed", (2, 2, 1)), ("fixed6", (6, 1)), ("dynamic", (1, 3, 3, 7))])
@torch.no_grad()
def test_the_count_on_the_meta_device_is_that_of_the_real_tower_on_the_whole_block(mode, lengths, grid_h, grid_w):
    tower = make_vision_tower(Qwen2_5_VLVisionConfig(**TINY), MODES[mode])
    # Only attention written out as matrix products is counted by torch on a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run_tower(tower, [noise(lengths, grid_h, grid_w)])
    assert FlopCounter(TINY, MODES).count(mode, lengths, grid_h, grid_w) == counter.get_total_flops()


def test_a_3b_tower_is_counted_without_its_weights():
    """Numbers of 0.3.0, whose formulas were written by hand."""
    flops = FlopCounter(QWEN2_5_VL_3B, MODES)
    assert flops.parameters == pytest.approx(669e6, rel=1e-3)
    assert flops.count("fixed", (2, 2, 1), 10, 18) == 697_747_783_680
    assert flops.count("dynamic", (1, 3, 3, 7), 16, 16) == 1_329_216_614_400


def test_parameters_are_those_of_the_real_tower():
    tower = make_vision_tower(Qwen2_5_VLVisionConfig(**TINY), FIXED)
    assert FlopCounter(TINY, MODES).parameters == sum(weight.numel() for weight in tower.parameters())


COUNTED = FlopCounter(TINY, MODES)


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
def test_peak_memory_of_the_tower_is_what_torchs_profiler_recorded_and_the_blocks_own_patches(scenes, lengths):
    tower, block = make_vision_tower(Qwen2_5_VLVisionConfig(**TINY), scenes), noise(lengths, 16, 10)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run_tower(tower, [block])
    alive = np.cumsum([e.nbytes() for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"])
    with PeakMemory([*tower.parameters(), *tower.buffers()]) as memory:
        run_tower(tower, [block])
    assert memory.peak_bytes == pytest.approx(alive.max() + block.patches_ND.nbytes, rel=0.01)


def noise(lengths, grid_h, grid_w):
    """A packed block of random patches of 14 x 14 pixels."""
    shape = (sum(lengths) * grid_h * grid_w, 3 * 14 * 14)
    patches_ND = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return PackedVideo(patches_ND, lengths, grid_h, grid_w, tuple(map(float, range(len(lengths)))))
