"""The towers attend to all windows in a few calls, and nobody can tell from the result: stock's loop is the oracle."""

import copy
import importlib

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from rl.config.policy import ScenesConfig
from rl.policy import window_attention
from rl.policy.model import policy_class
from rl.policy.vision_tower import Grid
from rl.policy.window_attention import Windows, attend, runs_flash

MOST_CALLS = 10  # per block
OF_ONE_PIXEL_SIZE = {  # patches of frames of about 252 x 364 and 364 x 504 pixels, in four and three scenes
    "qwen2_5_vl": (Grid(4, 18, 26), Grid(3, 26, 36)),
    "qwen3_vl": (Grid(4, 16, 22), Grid(3, 22, 32)),
}
VISION = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "spatial_merge_size": 2}
OWN = {
    "qwen2_5_vl": {"patch_size": 14, "window_size": 112, "fullatt_block_indexes": [2], "out_hidden_size": 24},
    "qwen3_vl": {"patch_size": 16, "deepstack_visual_indexes": [0, 1], "out_hidden_size": 24},
}
STOCK = {
    "qwen2_5_vl": "modeling_qwen2_5_vl:Qwen2_5_VisionTransformerPretrainedModel",
    "qwen3_vl": "modeling_qwen3_vl:Qwen3VLVisionModel",
}


@pytest.fixture(scope="module")
def towers(family):
    """Ours and stock's, of the same random weights."""
    kind = family.model_type
    vision = AutoConfig.for_model(kind, vision_config=VISION | OWN[kind]).vision_config
    vision._attn_implementation = "sdpa"
    torch.manual_seed(0)
    ours = policy_class(family).tower_class(vision, ScenesConfig())
    file, name = STOCK[kind].split(":")
    stock = getattr(importlib.import_module(f"transformers.models.{kind}.{file}"), name)(copy.deepcopy(vision))
    for module in (ours, stock):
        module.patch_embed = nn.Identity()
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.2)
    stock.load_state_dict(ours.state_dict())
    return ours, stock


def videos(family, which):
    small, large = OF_ONE_PIXEL_SIZE[family.model_type]
    return {"small": [small], "large": [large], "both": [small, large, small]}[which]


def patches(grids):
    random = torch.Generator().manual_seed(1)
    return torch.randn(sum(t * h * w for t, h, w in grids), VISION["hidden_size"], generator=random)


@pytest.mark.parametrize("which", ["small", "large", "both"])
def test_no_block_calls_more_than_ten_times(towers, family, which, monkeypatch):
    calls, inner = [], window_attention.scaled_dot_product_attention

    def counted(*args, **options):
        calls[-1] += 1
        return inner(*args, **options)

    monkeypatch.setattr(window_attention, "scaled_dot_product_attention", counted)
    hooks = [block.register_forward_pre_hook(lambda *_: calls.append(0)) for block in towers[0].blocks]
    grids = videos(family, which)
    with torch.no_grad():
        towers[0](patches(grids), grids)
    for hook in hooks:
        hook.remove()
    assert len(calls) == VISION["depth"] and min(calls) >= 1 and max(calls) <= MOST_CALLS


@pytest.mark.parametrize("which", ["small", "large", "both"])
def test_values_are_stock_s_to_the_bit_and_gradients_too_but_for_rounding(towers, family, which):
    grids = videos(family, which)
    found, expected = [], []
    for tower, results in zip(towers, (found, expected), strict=True):
        embedded = patches(grids).requires_grad_()
        tower.zero_grad()
        if tower is towers[0]:
            output = tower(embedded, grids)
            tokens, *levels = output
        else:
            output = tower(embedded, grid_thw=torch.tensor(grids))
            tokens, levels = output.pooler_output, getattr(output, "deepstack_features", None) or ()
        sum(value.sin().sum() for value in (tokens, *levels)).backward()
        gradients = {name: parameter.grad for name, parameter in tower.named_parameters()}
        results += [(tokens, *levels), {**gradients, "embedded": embedded.grad}]
    assert all(map(torch.equal, found[0], expected[0])) and found[0][0].detach().std() > 0.05
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=1e-6 * float(gradient.abs().max()), msg=name)


@pytest.mark.parametrize("lengths", [[5], [4, 4, 4], [3, 7, 3, 1, 7], [1, 2, 3, 4]])
def test_one_call_for_windows_of_any_length_is_given_their_bounds(lengths, monkeypatch):
    """What a GPU takes: its one call is stood in for by the plain definition."""
    query, key, value = torch.randn(3, sum(lengths), 2, 8, generator=torch.Generator().manual_seed(0))
    windows = Windows.of(lengths, query.device)
    assert not runs_flash(query)  # a CPU does not

    def one_call(query, key, value, begin, also_begin, most, also_most, *, scale):
        assert begin is also_begin and begin.dtype == torch.int32 and most == also_most == max(lengths)
        parts = []
        for first, last in zip(begin.tolist(), begin.tolist()[1:], strict=False):
            scores = torch.einsum("qhd,khd->hqk", query[first:last], key[first:last]) * scale
            parts.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), value[first:last]))
        return torch.cat(parts)

    grouped = attend(query, key, value, windows, 0.3)
    monkeypatch.setattr(window_attention, "runs_flash", lambda _: True)
    monkeypatch.setattr(window_attention, "varlen_attn", one_call)
    torch.testing.assert_close(attend(query, key, value, windows, 0.3), grouped, rtol=0, atol=1e-6)
