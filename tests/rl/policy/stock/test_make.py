"""A made checkpoint is the published one but for its values: stock transformers loads it, and so do we."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoTokenizer

from rl.config.policy import ScenesConfig
from rl.policy.convert import convert_stock_checkpoint
from rl.policy.model import load_policy
from rl.policy.sizes import SIZES, published_size
from rl.policy.stock.hub_files import PUBLISHED_IDS, model_config
from rl.policy.stock.make import make_checkpoint, weight_bytes
from rl.policy.token_ids import PolicyFilesError

SMALL_TEXT = {"hidden": 256, "intermediate": 128, "heads": 2, "kv_heads": 1}
SMALL_VISION = {"hidden": 64, "intermediate": 96, "heads": 2}
NAMES = {  # of the hub's files: language model, tower
    "qwen2_5_vl": ("model.layers.0.self_attn.q_proj.weight", "visual.blocks.0.attn.qkv.weight"),
    "qwen3_vl": ("model.language_model.layers.0.self_attn.q_proj.weight", "model.visual.blocks.0.attn.qkv.weight"),
}


def small(family, name):
    """A published size with narrow layers; what is tied, nested, windowed or stacked stays."""
    size = published_size(family, name).cut(3, 4)
    return replace(size, text=replace(size.text, **SMALL_TEXT), vision=replace(size.vision, **SMALL_VISION))


@pytest.fixture(
    scope="module", params=[("qwen2_5_vl", "3b"), ("qwen2_5_vl", "7b"), ("qwen3_vl", "4b"), ("qwen3_vl", "8b")]
)
def size(request):
    return small(*request.param)


@pytest.fixture(scope="module")
def made(size, tmp_path_factory):
    return make_checkpoint(size, tmp_path_factory.mktemp("made") / "folder", vocabulary="tiny", shard_gb=0.001)


def test_stock_transformers_loads_it_and_misses_nothing(made, size):
    model, loading = AutoModelForImageTextToText.from_pretrained(made, output_loading_info=True)
    assert {kind: names for kind, names in loading.items() if names} == {}
    assert model.dtype is torch.bfloat16
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == size.text.is_tied
    chat = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What?"}]}]
    prompt = AutoTokenizer.from_pretrained(made).apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert prompt.endswith(
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>What?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_its_files_are_named_as_the_hubs(made, size):
    index = json.loads((made / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in made.glob("*.safetensors"))
    assert files == [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))] and len(files) > 1
    assert sorted(set(index["weight_map"].values())) == files
    assert set(NAMES[size.family.model_type]) <= set(index["weight_map"])
    assert ("lm_head.weight" in index["weight_map"]) != size.text.is_tied
    with safe_open(made / files[0], framework="pt") as weights:
        assert set(weights.keys()) == {name for name, file in index["weight_map"].items() if file == files[0]}
    assert ("text_config" in json.loads((made / "config.json").read_text())) == (size.family.model_type == "qwen3_vl")
    others = {"generation_config.json", "preprocessor_config.json", "chat_template.json", "vocab.json", "merges.txt"}
    assert others <= {path.name for path in made.iterdir()}


def test_it_becomes_a_policy(made, tmp_path):
    folder = convert_stock_checkpoint(made, tmp_path / "ours", ScenesConfig())
    assert load_policy(folder, ScenesConfig(), torch.bfloat16).dtype is torch.bfloat16


def test_equal_seeds_give_equal_files_and_depth_changes_no_other_tensor(tmp_path):
    size = small("qwen3_vl", "8b")
    shallow = replace(size, text=replace(size.text, layers=1))
    one, two = (make_checkpoint(size, tmp_path / name, vocabulary="tiny") for name in "ab")
    assert [path.read_bytes() for path in sorted(one.iterdir())] == [
        path.read_bytes() for path in sorted(two.iterdir())
    ]
    other = make_checkpoint(shallow, tmp_path / "shallow", vocabulary="tiny")
    name = "model.visual.blocks.1.mlp.linear_fc1.weight"
    with safe_open(one / "model.safetensors", "pt") as deep, safe_open(other / "model.safetensors", "pt") as cut:
        assert torch.equal(deep.get_tensor(name), cut.get_tensor(name))
        assert not torch.equal(deep.get_tensor(name), deep.get_tensor(name.replace("blocks.1", "blocks.2")))


def test_a_folder_that_is_there_and_a_disk_that_is_too_small_are_refused(tmp_path, monkeypatch):
    with pytest.raises(PolicyFilesError, match="is there already"):
        make_checkpoint(SIZES[0], tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**30))
    with pytest.raises(PolicyFilesError, match=r"takes 0\.0 GiB and a spare one, .* has 1\.0 GiB free: make room"):
        make_checkpoint(small("qwen2_5_vl", "3b"), tmp_path / "new", vocabulary="tiny")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "family, name, layers, vision_layers, full_attention, deepstack",
    [
        ("qwen2_5_vl", "3b", None, None, (7, 15, 23, 31), ()),
        ("qwen2_5_vl", "3b", 2, 9, (7, 8), ()),
        ("qwen2_5_vl", "7b", 2, 2, (1,), ()),
        ("qwen3_vl", "4b", None, None, (), (5, 11, 17)),
        ("qwen3_vl", "4b", 3, 4, (), (0, 1, 2)),
        ("qwen3_vl", "4b", 2, 4, (), (0, 1)),  # a level needs a language layer of its own
        ("qwen3_vl", "8b", 36, 2, (), (0, 1)),
    ],
)
def test_fewer_layers_keep_the_blocks_that_matter(family, name, layers, vision_layers, full_attention, deepstack):
    vision = published_size(family, name).cut(layers, vision_layers).vision
    assert (vision.full_attention, vision.deepstack) == (full_attention, deepstack)


@pytest.mark.parametrize("asked, told", [((37, None), "has 36 layers, 37"), ((None, 33), "has 32 vision layers, 33")])
def test_more_layers_than_published_are_refused(asked, told):
    with pytest.raises(PolicyFilesError, match=told):
        published_size("qwen2_5_vl", "3b").cut(*asked)


def test_an_unknown_size_is_refused_with_those_there_are():
    with pytest.raises(PolicyFilesError, match=r"no published size qwen3_vl 3b; there are qwen2_5_vl 3b, "):
        published_size("qwen3_vl", "3b")


@pytest.mark.thorough
@pytest.mark.parametrize(
    "family, name, billions",
    [
        *(("qwen2_5_vl", "3b", 3.75), ("qwen2_5_vl", "7b", 8.29), ("qwen2_5_vl", "32b", 33.45)),
        *(("qwen2_5_vl", "72b", 73.41), ("qwen3_vl", "2b", 2.13), ("qwen3_vl", "4b", 4.44)),
        *(("qwen3_vl", "8b", 8.77), ("qwen3_vl", "32b", 33.36)),
    ],
)
def test_published_sizes_have_the_published_numbers_of_parameters(family, name, billions):
    assert weight_bytes(published_size(family, name)) / 2e9 == pytest.approx(billions, abs=0.006)


def test_every_size_tells_the_ids_of_qwens_vocabulary():
    for size in SIZES:
        assert model_config(size)["video_token_id"] == PUBLISHED_IDS["<|video_pad|>"] == 151656
