"""Adaptive Temporal Encoding: a kernel for any scene length, exact where it can be and optimal where it cannot."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rl.policy.patch_embed import FlexiPatchEmbed, expand_temporal_kernel, interpolation_matrix, resample_matrix

INIT = 6
lengths = st.integers(1, 40)


def embedder(kernel_frames=INIT, channels=5, patch=4, fixed=False, unit_gain=True, seed=0):
    module = FlexiPatchEmbed(channels, patch, kernel_frames, fixed=fixed, unit_gain=unit_gain)
    stock = torch.randn(channels, 3, 2, patch, patch, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        module.weight.copy_(stock if kernel_frames == 2 else expand_temporal_kernel(stock, kernel_frames))
    return module, stock


def random_patches(count, patch=4, seed=1):
    return torch.randint(
        0, 256, (count, 3 * patch**2), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


@given(lengths, st.integers(1, 12))
def test_interpolation_rows_are_weights(length, init):
    matrix = interpolation_matrix(length, init)
    assert matrix.shape == (length, init)
    assert (matrix >= 0).all() and matrix.sum(axis=1) == pytest.approx(1)


@given(st.integers(INIT, 40), st.integers(0, 2**32))
def test_resampled_kernel_answers_as_the_original_for_longer_scenes(length, seed):
    video, kernel = np.random.default_rng(seed).normal(size=(2, INIT))
    resampled = interpolation_matrix(length, INIT) @ video
    assert resampled @ (resample_matrix(length, INIT) @ kernel) == pytest.approx(video @ kernel, abs=1e-9)


@given(st.integers(1, INIT - 1), st.integers(0, 2**32))
def test_resampled_kernel_is_the_least_squares_optimum_for_shorter_scenes(length, seed):
    rng = np.random.default_rng(seed)
    transposed, kernel = interpolation_matrix(length, INIT).T, rng.normal(size=INIT)
    optimum = resample_matrix(length, INIT) @ kernel
    assert optimum == pytest.approx(np.linalg.lstsq(transposed, kernel, rcond=None)[0])
    nearby = optimum + rng.normal(size=length) * 1e-2
    assert np.linalg.norm(transposed @ optimum - kernel) <= np.linalg.norm(transposed @ nearby - kernel)


def test_static_gain_without_and_with_correction():
    bare = [resample_matrix(length, INIT).sum() / INIT for length in range(1, 9)]
    assert bare == pytest.approx([0.968, 0.970, 0.991, 0.998, 1, 1, 1, 1], abs=5e-4)
    assert [resample_matrix(length, INIT, True).sum() / INIT for length in range(1, 9)] == pytest.approx([1] * 8)


def test_a_pair_keeps_its_order():
    early_frame = np.array([1.0, 1, 1, 0, 0, 0])
    first, second = resample_matrix(2, INIT) @ early_frame
    assert first > second


def test_expansion_repeats_the_pair_and_keeps_the_sum():
    stock = torch.randn(4, 3, 2, 2, 2)
    expanded = expand_temporal_kernel(stock, 6)
    assert expanded.shape == (4, 3, 6, 2, 2)
    torch.testing.assert_close(expanded[:, :, 5], stock[:, :, 1] / 3)
    torch.testing.assert_close(expanded.sum(2), stock.sum(2))


@pytest.mark.parametrize("shape, init", [((4, 3, 3, 2, 2), 6), ((4, 3, 2, 2, 2), 5), ((4, 3, 2, 2), 6)])
def test_expansion_refuses_other_kernels(shape, init):
    with pytest.raises(ValueError, match="cannot expand"):
        expand_temporal_kernel(torch.zeros(shape), init)


@given(lengths)
def test_a_still_scene_of_any_length_is_embedded_as_one_frame(length):
    module, _ = embedder()
    frame = random_patches(8)
    once = module(frame, [1], 8)
    torch.testing.assert_close(module(frame.repeat(length, 1), [length], 8), once, atol=2e-5, rtol=1e-5)


def test_a_still_scene_gets_the_stock_response():
    flexible, _ = embedder()
    stock, _ = embedder(kernel_frames=2, fixed=True)
    frame = random_patches(8)
    torch.testing.assert_close(flexible(frame.repeat(3, 1), [3], 8), stock(frame, [1], 8), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 5, 6, 9])
def test_matrix_product_equals_a_convolution_with_the_resampled_kernel(length):
    module, _ = embedder()
    patches = random_patches(length * 8)
    resample = torch.tensor(resample_matrix(length, INIT, True), dtype=torch.float32)
    conv = nn.Conv3d(3, 5, (length, 4, 4), stride=(length, 4, 4), bias=False)
    conv.weight.data = torch.einsum("lt,citxy->cilxy", resample, module.weight.data)
    volume = module._normalise(patches.view(length, 8, -1)).view(length, 8, 3, 4, 4).permute(1, 2, 0, 3, 4)
    torch.testing.assert_close(module(patches, [length], 8), conv(volume).flatten(1), atol=2e-5, rtol=1e-5)


def test_scenes_of_several_videos_come_back_in_order():
    module, _ = embedder()
    scene_lengths, patches_per_frame = [3, 1, 3, 2], [8, 8, 4, 4]
    patches = random_patches(3 * 8 + 8 + 3 * 4 + 2 * 4)
    together = module(patches, scene_lengths, patches_per_frame)
    pieces = patches.split([24, 8, 12, 8])
    alone = [module(piece, [n], p) for piece, n, p in zip(pieces, scene_lengths, patches_per_frame, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_fixed_mode_equals_conv3d_bit_for_bit_and_repeats_an_odd_last_frame():
    module, stock = embedder(kernel_frames=2, channels=64, patch=14, fixed=True)
    patches = random_patches(3 * 16, patch=14)
    volume = module._normalise(torch.cat([patches, patches[-16:]]).view(4, 16, -1)).view(2, 2, 16, 3, 14, 14)
    expected = nn.functional.conv3d(volume.permute(0, 2, 3, 1, 4, 5).flatten(0, 1), stock, stride=(2, 14, 14)).flatten(
        1
    )
    assert torch.equal(module(patches, [2, 1], 16), expected)


def test_the_kernel_learns_through_every_length():
    module, _ = embedder()
    module(random_patches(8 * 8), [1, 2, 5], 8).square().sum().backward()
    assert module.weight.grad.abs().amin(dim=(0, 1, 3, 4)).all()


def test_bfloat16_stays_near_float32():
    module, _ = embedder()
    patches = random_patches(8 * 8)
    exact = module(patches, [1, 2, 5], 8)
    rounded = module.to(torch.bfloat16)(patches, [1, 2, 5], 8)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().max() < 0.02 * exact.abs().max()


def test_embedded_patches_pass_through():
    module, _ = embedder()
    embedded = torch.randn(8, 5)
    assert module(embedded) is embedded
    assert module.proj.weight is module.weight


def test_lengths_that_do_not_fit_are_refused():
    module, _ = embedder()
    with pytest.raises(ValueError, match="scenes hold 16 patches, got 8"):
        module(random_patches(8), [2], 8)
    with pytest.raises(ValueError, match="patches_per_frame"):
        module(random_patches(8), [1])
    with pytest.raises(ValueError, match="at least one frame"):
        resample_matrix(0, INIT)
