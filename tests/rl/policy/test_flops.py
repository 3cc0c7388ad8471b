"""Operations counted from a policy's structure are those that torch counts in the policy itself."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rl.config.policy import LoraConfig, PolicyConfig, ScenesConfig
from rl.policy.configuration import own_configuration
from rl.policy.flops import VideoShape, Workload, language_flops, tower_flops, training_flops
from rl.policy.lora import add_lora
from rl.policy.model import freeze_vision, policy_class
from rl.policy.policy_folder import flexivideo_section
from rl.policy.sizes import BY_NAME
from rl.policy.stock.hub_files import model_config
from rl.policy.structure import kernel_frames, read_structure
from rl.policy.vision_tower import Grid

FAMILIES = [("qwen2_5_vl", "3b"), ("qwen3_vl", "4b")]
FIXED = ScenesConfig(mode="fixed")


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda name: name[0])
def sized(request):
    """A policy of real widths and few layers, without weights, and its structure."""
    size = BY_NAME[request.param].cut(2, 3)
    found = model_config(size)
    found["vision_config"]["flexivideo"] = flexivideo_section(FIXED)
    with torch.device("meta"):
        model = policy_class(size.family)._from_config(
            own_configuration(found, size.family), attn_implementation="sdpa"
        )
    frames = kernel_frames(PolicyConfig(scenes=FIXED))
    return model, read_structure(model_config(size), "config.json", init_frames=frames)


def see(visual, video, patch):
    """One pass over a video that has a shape and no pixels."""
    grid = video.height // patch, video.width // patch
    per_frame, scenes = grid[0] * grid[1], len(video.scene_lengths)
    values = 3 * patch**2
    pixels_ND = torch.empty(sum(video.scene_lengths) * per_frame, values, dtype=torch.uint8, device="meta")
    embedded_NE = visual.patch_embed(pixels_ND, list(video.scene_lengths), [per_frame] * scenes)
    return visual(embedded_NE, [Grid(scenes, *grid)])


def operations(action):
    with FlopCounterMode(display=False) as counter:
        action()
    return counter.get_total_flops()


@pytest.mark.parametrize("units", [(4, 4), (9, 13), (3, 2)], ids=str)  # whole windows, some cut off, less than one
def test_a_pass_through_the_tower(sized, units):
    model, structure = sized
    tower = structure.tower
    video = VideoShape((2, 2, 2), units[0] * tower.unit, units[1] * tower.unit)
    with torch.no_grad():
        counted = operations(lambda: see(model.model.visual, video, tower.patch))
    assert tower_flops(tower, video) == counted


@pytest.mark.parametrize("frozen", [True, False])
def test_learning_through_the_tower(sized, frozen):
    model, structure = sized
    visual = copy.deepcopy(model.model.visual).requires_grad_(True)
    if frozen:
        freeze_vision(whole := copy.deepcopy(model))
        visual = whole.model.visual
    video = VideoShape((2, 2), 4 * structure.tower.unit, 6 * structure.tower.unit)

    def learn():
        sum(part.sum() for part in see(visual, video, structure.tower.patch)).backward()

    nothing = Workload(0, 0, 0, (video,))
    assert training_flops(structure, nothing, freeze_vision=frozen) == operations(learn)


def learn(model, tokens, scored):
    """Forward and backward through the language model, whose input has a gradient, and its head."""
    hidden = model.config.text_config.hidden_size
    embedded_1TE = torch.empty(1, tokens, hidden, device="meta", requires_grad=True)
    positions_31T = torch.empty(3, 1, tokens, dtype=torch.long, device="meta")
    hidden_1TE = model.model.language_model(
        inputs_embeds=embedded_1TE, position_ids=positions_31T, attention_mask=None, use_cache=False
    ).last_hidden_state
    nn.functional.linear(hidden_1TE[0, :scored], model.lm_head.weight).sum().backward()


def test_the_language_model_and_its_head(sized):
    model, structure = sized
    tokens, scored = 24, 7

    work = Workload(tokens, tokens**2, scored)
    assert training_flops(structure, work, freeze_vision=False) == operations(lambda: learn(model, tokens, scored))
    with_reference = training_flops(structure, work, freeze_vision=False, reference=True)
    assert with_reference == 4 * language_flops(structure.language, work)


@pytest.mark.parametrize(
    "lora", [LoraConfig(rank=8), LoraConfig(rank=4, targets=["o_proj", "up_proj"], full=["lm_head"])], ids=str
)
def test_low_rank_updates_of_the_language_model(sized, lora):
    model, structure = copy.deepcopy(sized[0]), sized[1]
    add_lora(model, lora, seed=0)

    counted = operations(lambda: learn(model, 24, 7))

    assert training_flops(structure, Workload(24, 24**2, 7), freeze_vision=True, lora=lora) == counted


@pytest.mark.parametrize("targets", [["visual.qkv"], ["visual.proj", "q_proj"]])
def test_low_rank_updates_of_the_tower(sized, targets):
    """Nothing before the first update has a gradient: torch counts a little less."""
    model, structure = copy.deepcopy(sized[0]), sized[1]
    lora = LoraConfig(rank=4, targets=targets, full=["merger"])
    add_lora(model, lora, seed=0)
    video = VideoShape((2, 2), 4 * structure.tower.unit, 6 * structure.tower.unit)

    counted = operations(
        lambda: sum(part.sum() for part in see(model.model.visual, video, structure.tower.patch)).backward()
    )

    told = training_flops(structure, Workload(0, 0, 0, (video,)), freeze_vision=False, lora=lora)
    assert counted <= told < 1.1 * counted
