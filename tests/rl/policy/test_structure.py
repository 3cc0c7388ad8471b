"""The number of parameters, told from shapes, is the number that the models have, part by part."""

from dataclasses import replace

import pytest
import torch

from rl.config.policy import LoraConfig, PolicyConfig, ScenesConfig, TinyPolicyConfig
from rl.policy.configuration import own_configuration
from rl.policy.lora import add_lora, is_update
from rl.policy.model import freeze_vision, policy_class
from rl.policy.policy_folder import flexivideo_section
from rl.policy.sizes import BY_NAME
from rl.policy.stock.hub_files import model_config
from rl.policy.structure import kernel_frames, read_structure, tiny_structure
from rl.policy.tiny import build_tiny_policy
from rl.policy.token_ids import PolicyFilesError
from rl.policy.weight_files import read_header

SCENES = {"expanded": ScenesConfig(), "stock": ScenesConfig(mode="fixed")}
PUBLISHED = {  # parameters in billions, as the model cards have them
    ("qwen2_5_vl", "3b"): 3.75,
    ("qwen2_5_vl", "7b"): 8.29,
    ("qwen3_vl", "2b"): 2.13,
    ("qwen3_vl", "4b"): 4.44,
    ("qwen3_vl", "8b"): 8.77,
    ("qwen3_vl", "32b"): 33.4,
}


def model_on_meta(size, scenes):
    found = model_config(size)
    found["vision_config"]["flexivideo"] = flexivideo_section(scenes)
    with torch.device("meta"):
        return policy_class(size.family)(own_configuration(found, size.family))


@pytest.mark.parametrize("scenes", SCENES.values(), ids=SCENES)
@pytest.mark.parametrize("name", [("qwen2_5_vl", "3b"), ("qwen2_5_vl", "7b"), ("qwen3_vl", "4b"), ("qwen3_vl", "8b")])
def test_parameters_are_those_of_the_model(name, scenes):
    size = BY_NAME[name].cut(2, 3)
    model = model_on_meta(size, scenes)
    frames = kernel_frames(PolicyConfig(scenes=scenes))
    structure = read_structure(model_config(size), "config.json", init_frames=frames)

    assert structure.parameters == sum(parameter.numel() for parameter in model.parameters())
    freeze_vision(model)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert structure.trained(freeze_vision=True) == trained
    assert structure.trained(freeze_vision=False) == structure.parameters


@pytest.mark.parametrize(
    ("name", "lora"),
    [
        (("qwen2_5_vl", "3b"), LoraConfig(rank=8)),
        (("qwen2_5_vl", "7b"), LoraConfig(rank=4, targets=["o_proj", "visual.qkv", "visual.up_proj"], full=["merger"])),
        (("qwen3_vl", "4b"), LoraConfig(rank=4, targets=["k_proj", "visual.linear_fc2"], full=["lm_head"])),
        (("qwen3_vl", "8b"), LoraConfig(rank=16, targets=["q_proj"], full=["merger", "lm_head"])),
    ],
)
def test_what_lora_trains_is_counted(name, lora):
    size = BY_NAME[name].cut(2, 3)
    model = model_on_meta(size, ScenesConfig())
    add_lora(model, lora, seed=0)
    structure = read_structure(model_config(size), "config.json", init_frames=6)

    updates = sum(p.numel() for name, p in model.named_parameters() if is_update(name))
    assert structure.updates(lora) == updates
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert structure.trained(freeze_vision=True, lora=lora) == trained


@pytest.mark.parametrize(("name", "billions"), PUBLISHED.items())
def test_published_sizes_have_the_parameters_they_are_known_for(name, billions):
    structure = read_structure(model_config(BY_NAME[name]), "config.json", init_frames=2)
    assert structure.parameters / 1e9 == pytest.approx(billions, rel=0.003)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_the_tiny_policy_is_known_before_it_is_built(family, tmp_path):
    policy = PolicyConfig(tiny=TinyPolicyConfig(family=family))
    folder = build_tiny_policy(policy.tiny, policy.scenes, tmp_path / "tiny", seed=0)
    shapes = [entry.shape for entry in read_header(folder / "model.safetensors").values()]
    assert tiny_structure(policy).parameters == sum(torch.Size(shape).numel() for shape in shapes)


def test_a_configuration_without_a_size_is_refused_by_file():
    found = model_config(BY_NAME["qwen3_vl", "4b"])
    del found["text_config"]["intermediate_size"]
    with pytest.raises(PolicyFilesError, match=r"models/x/config\.json: not a configuration of qwen3_vl .*intermedi"):
        read_structure(found, "models/x/config.json", init_frames=6)


def test_grouped_queries_and_a_head_of_its_own_are_counted():
    language = read_structure(model_config(BY_NAME["qwen3_vl", "8b"]), "config.json", init_frames=6).language
    assert (language.query_width, language.kv_width, language.is_tied) == (4096, 1024, False)
    tied = replace(language, is_tied=True)
    assert language.parameters - tied.parameters == 151_936 * 4096
