"""Attention over packed rows: values and gradients of a dense mask, in every arrangement, and on CUDA's terms."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention.flex_attention import flex_attention

from rl.policy.packed_attention import PackedAttention, block_mask
from rl.policy.packing import Tree, visible

HEADS, KEY_HEADS, SIZE = 4, 2, 16

trees = st.builds(
    Tree, st.integers(0, 9), st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)
)  # some share nothing
packings = st.lists(trees, min_size=1, max_size=4).map(tuple)


def inputs(packing, dtype=torch.float32):
    torch.manual_seed(0)
    tokens = sum(tree.tokens for tree in packing)
    return [
        torch.randn(1, tokens, heads, SIZE, dtype=dtype).transpose(1, 2).requires_grad_()
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    ]


def dense(query, key, value, packing):
    repeats = HEADS // KEY_HEADS
    key, value = (part.repeat_interleave(repeats, 1) for part in (key, value))
    return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=visible(packing), scale=0.3)


@given(packings)
@settings(max_examples=40, deadline=None)
def test_values_and_gradients_are_those_of_a_dense_mask(packing):
    parts = inputs(packing)
    found, expected = PackedAttention.apply(*parts, packing, 0.3), dense(*parts, packing)
    weights = torch.randn_like(expected)

    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    pairs = zip(torch.autograd.grad(found, parts, weights), torch.autograd.grad(expected, parts, weights), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


def test_sequences_that_share_nothing_are_those_of_causal_attention_bit_for_bit():
    packing = (Tree(0, (5,)), Tree(0, (9,)))
    query, key, value = inputs(packing)
    found = PackedAttention.apply(query, key, value, packing, 0.3)

    for place in (slice(0, 5), slice(5, 14)):
        alone = nn.functional.scaled_dot_product_attention(
            *(part[..., place, :] for part in (query, key, value)), is_causal=True, scale=0.3, enable_gqa=True
        )
        assert torch.equal(found[..., place, :], alone)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_block_mask_for_cuda_lets_the_same_tokens_see_each_other():
    packing = (Tree(70, (100, 30)), Tree(0, (60,)), Tree(9, (5, 5)))
    query, key, value = (part.detach() for part in inputs(packing))

    found = flex_attention(query, key, value, block_mask=block_mask(packing, "cpu"), scale=0.3, enable_gqa=True)

    torch.testing.assert_close(found, dense(query, key, value, packing), rtol=0, atol=2e-6)


def test_bfloat16_is_as_near_as_its_digits_allow():
    packing = (Tree(7, (3, 5)),)
    parts = inputs(packing, torch.bfloat16)
    exact = dense(*(part.float() for part in parts), packing)

    torch.testing.assert_close(PackedAttention.apply(*parts, packing, 0.3).float(), exact, rtol=0, atol=2e-2)
