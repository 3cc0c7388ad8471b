"""What encoding costs, told from integers: by hand for a tower small enough, by torch's counter for the real one."""

import json

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
from rl.encode_stats.cost import QWEN2_5_VL_3B, VisionGeometry, encode_flops, kpixel_per_tflop, read_vision_config
from rl.encode_stats.peak_memory import PeakMemory
from rl.policy.geometry import PackedVideo
from rl.policy.tiny import vision_section
from rl.policy.token_ids import PolicyFilesError
from rl.policy.vision_tower import encode_videos, make_vision_tower

#                       p        m       window     E          I               out           L
SMALL = VisionGeometry(
    patch=1, merge=2, window=4, hidden=10, intermediate=5, out_hidden=3, depth=3, full_attention_blocks=1
)
TINY = vision_section(TinyPolicyConfig())
DYNAMIC, FIXED = ScenesConfig(), ScenesConfig(mode="fixed")


def test_a_small_tower_is_counted_by_hand():
    # Three scenes of 1, 2 and 2 frames; frames of 4 x 6 patches: P = 24, N = 72.
    flops = encode_flops(SMALL, DYNAMIC, (1, 2, 2), 4, 6)
    # A kernel frame holds 3 * 1 * 10 = 30 numbers; kernels of 1 and 2 frames out of 6: 2 * 6 * 30 * (1 + 2) = 1080;
    # patches: 2 * 24 * 30 * (1 + 2 + 2) = 7200.
    assert flops.patch_embed == 1080 + 7200
    assert flops.projections == 3 * 2 * 72 * 4 * 100  # qkv is 3 E², the output one
    # Windows of 4 x 4 and, cut off, 4 x 2 patches: 16² + 8² = 320 per scene, in the two windowed blocks.
    assert flops.windowed_attention == 2 * 4 * 10 * 3 * 320
    assert flops.full_attention == 1 * 4 * 10 * 3 * 24**2
    assert flops.mlp == 3 * 6 * 72 * 10 * 5
    assert flops.merger == 2 * 18 * 40 * (40 + 3)  # 72 / 4 merged blocks of 4 * 10 numbers
    assert flops.total == sum((8280, 172_800, 76_800, 69_120, 64_800, 61_920))


def test_fixed_pairs_pay_for_two_frames_each_and_for_no_new_kernel():
    # 2 * 24 * 2 * 30 per pair; a single last frame is doubled.
    assert encode_flops(SMALL, FIXED, (2, 2, 1), 4, 6).patch_embed == 3 * 2880


@pytest.mark.parametrize(("grid_h", "grid_w"), [(2, 4), (16, 16), (10, 18)])
@pytest.mark.parametrize(
    ("scenes", "lengths"), [(FIXED, (2, 2, 1)), (ScenesConfig(mode="fixed6"), (6, 1)), (DYNAMIC, (1, 3, 3, 7))]
)
@torch.no_grad()
def test_torch_counts_exactly_the_same_on_the_real_tower(scenes, lengths, grid_h, grid_w):
    tower = make_vision_tower(Qwen2_5_VLVisionConfig(**TINY), scenes)
    # Only attention written out as matrix products is counted by torch on a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        encode_videos(tower, [noise(lengths, grid_h, grid_w)])
    counted = encode_flops(VisionGeometry.of(TINY), scenes, lengths, grid_h, grid_w)
    assert counter.get_total_flops() == counted.total


def test_parameters_are_those_of_the_real_tower_and_of_qwen_3b():
    tower = make_vision_tower(Qwen2_5_VLVisionConfig(**TINY), FIXED)
    assert VisionGeometry.of(TINY).parameters == sum(weight.numel() for weight in tower.parameters())
    with torch.device("meta"):
        large = make_vision_tower(Qwen2_5_VLVisionConfig(**QWEN2_5_VL_3B), FIXED)
    assert VisionGeometry.of(QWEN2_5_VL_3B).parameters == sum(weight.numel() for weight in large.parameters())
    assert VisionGeometry.of(QWEN2_5_VL_3B).parameters == pytest.approx(669e6, rel=1e-3)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 6), st.integers(1, 6))
def test_fewer_scenes_of_the_same_frames_never_cost_more(lengths, rows, columns):
    """Merging two scenes saves what their patches cost after the embedding, more than a longer kernel takes."""
    geometry = VisionGeometry.of(QWEN2_5_VL_3B)
    apart = (*lengths, 1, 1)
    together = (*lengths, 2)
    cost = [encode_flops(geometry, DYNAMIC, scenes, 2 * rows, 2 * columns) for scenes in (apart, together)]
    assert cost[1].total - cost[1].patch_embed < cost[0].total - cost[0].patch_embed


def test_kpixel_per_tflop_is_thousands_of_pixels_over_10_to_the_12_operations():
    assert kpixel_per_tflop(num_frames=10, height=28, width=56, flops=2 * 10**12) == pytest.approx(7.84)


@pytest.mark.parametrize(("lengths", "grid"), [((), (2, 2)), ((1, 0), (2, 2)), ((1,), (3, 2)), ((1,), (0, 2))])
def test_blocks_that_cannot_be_are_refused(lengths, grid):
    with pytest.raises(ValueError, match=r"scenes must have frames|multiples of 2"):
        encode_flops(SMALL, DYNAMIC, lengths, *grid)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"depth": None}, "depth"), ({"hidden_size": "64"}, "whole numbers"), ({"window_size": 20}, "no merged block")],
)
def test_a_configuration_without_sizes_is_refused_by_name(change, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": TINY | change}))
    with pytest.raises(PolicyFilesError, match=message):
        VisionGeometry.of(read_vision_config(tmp_path))


def test_a_folder_without_a_vision_config_is_named(tmp_path):
    with pytest.raises(PolicyFilesError, match=r"config\.json: no configuration"):
        read_vision_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(PolicyFilesError, match="vision_config"):
        read_vision_config(tmp_path)


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
        encode_videos(tower, [block])
    alive = np.cumsum([e.nbytes() for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"])
    with PeakMemory([*tower.parameters(), *tower.buffers()]) as memory:
        encode_videos(tower, [block])
    assert memory.peak_bytes == pytest.approx(alive.max() + block.patches_ND.nbytes, rel=0.01)


def noise(lengths, grid_h, grid_w):
    """A packed block of random patches of 14 x 14 pixels."""
    shape = (sum(lengths) * grid_h * grid_w, 3 * 14 * 14)
    patches_ND = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return PackedVideo(patches_ND, lengths, grid_h, grid_w, tuple(map(float, range(len(lengths)))))
