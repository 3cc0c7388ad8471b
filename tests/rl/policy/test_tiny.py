"""The built-in policy and the conversion of stock checkpoints."""

import hashlib
import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from rl.config.policy import ScenesConfig, TinyPolicyConfig
from rl.policy import convert
from rl.policy.configuration import read_configuration
from rl.policy.conversion import canonical_name
from rl.policy.convert import convert_stock_checkpoint, converted_folder, prepare_policy
from rl.policy.families import STOCK_KERNEL
from rl.policy.model import load_policy
from rl.policy.processor import Processor
from rl.policy.tiny import build_tiny_policy
from rl.policy.token_ids import PolicyFilesError

SCENES = ScenesConfig()
SMALL = TinyPolicyConfig(hidden_size=64, num_layers=1, num_heads=2, num_kv_heads=1, vocab_size=384)


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_equal_seeds_give_equal_files(tmp_path):
    first = digests(build_tiny_policy(SMALL, SCENES, tmp_path / "a", seed=3))
    second = digests(build_tiny_policy(SMALL, SCENES, tmp_path / "b", seed=3))
    other = digests(build_tiny_policy(SMALL, SCENES, tmp_path / "c", seed=4))
    assert first == second
    assert {name for name in first if first[name] != other[name]} == {"model.safetensors"}


def test_default_policy_has_one_to_three_million_parameters(tmp_path):
    folder = build_tiny_policy(TinyPolicyConfig(), SCENES, tmp_path / "policy", seed=0)
    assert 1e6 <= load_policy(folder, SCENES).num_parameters() <= 3e6


def test_folder_is_an_ordinary_one(tiny_dir, processor, family):
    config = read_configuration(tiny_dir)
    assert config.model_type == f"flexivideo_{family.model_type}" and config.architectures == [family.architecture]
    assert config.vision_config.flexivideo["tau"] == 0.2 and len(config.vision_config.flexivideo["fingerprint"]) == 12
    tokenizer = AutoTokenizer.from_pretrained(tiny_dir)
    text = "<|im_start|>user\nWhich colour at 12.5 s?<|im_end|>\n<think><span>1 - 2</span>"
    assert tokenizer(text).input_ids == processor.encode(text)
    assert "<span>1 - 2</span>" in tokenizer.decode(processor.encode(text), skip_special_tokens=True)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_conversion_expands_the_kernel_and_adds_the_tags(stock_dir, tmp_path):
    folder = convert_stock_checkpoint(stock_dir, tmp_path / "ours", SCENES, seed=0)
    stock = {canonical_name(name): tensor for name, tensor in load_file(stock_dir / "model.safetensors").items()}
    ours = load_policy(folder, SCENES).state_dict()
    kernel = stock[STOCK_KERNEL]
    torch.testing.assert_close(ours["model.visual.patch_embed.weight"].sum(2), kernel.sum(2))
    ids = Processor.from_pretrained(folder, SCENES).ids
    rows, old = ours["model.language_model.embed_tokens.weight"], stock["model.language_model.embed_tokens.weight"]
    assert torch.equal(rows[: ids.span_open], old[: ids.span_open])
    assert (rows[ids.span_open] - old.mean(0)).abs().max() < 0.2 * old.std()
    assert not torch.equal(rows[ids.span_open], rows[ids.span_close])
    assert len(rows) % 64 == 0


def test_a_head_that_is_the_embedding_stays_so_through_conversion(tiny, tmp_path):
    stock = build_tiny_policy(tiny, SCENES, tmp_path / "stock", seed=7, stock=True, tied=True)
    folder = convert_stock_checkpoint(stock, tmp_path / "ours", SCENES)
    assert not any("lm_head" in name for name in load_file(folder / "model.safetensors"))
    model = load_policy(folder, SCENES)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert len(model.lm_head.weight) == model.config.text_config.vocab_size


def test_conversion_is_deterministic_and_reads_shards(stock_dir, tmp_path):
    whole = convert_stock_checkpoint(stock_dir, tmp_path / "whole", SCENES, seed=1)
    assert digests(whole) == digests(convert_stock_checkpoint(stock_dir, tmp_path / "again", SCENES, seed=1))

    sharded = tmp_path / "stock"
    sharded.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (sharded / name).write_bytes((stock_dir / name).read_bytes())
    weights = sorted(load_file(stock_dir / "model.safetensors").items())
    halves = {"a.safetensors": dict(weights[::2]), "b.safetensors": dict(weights[1::2])}
    for shard, tensors in halves.items():
        save_file(tensors, sharded / shard, metadata={"format": "pt"})
    weight_map = {name: shard for shard, tensors in halves.items() for name in tensors}
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    again = load_policy(convert_stock_checkpoint(sharded, tmp_path / "halves", SCENES, seed=1), SCENES).state_dict()
    assert torch.equal(
        again["model.visual.patch_embed.weight"],
        load_policy(whole, SCENES).state_dict()["model.visual.patch_embed.weight"],
    )


@pytest.mark.parametrize(
    "name, canonical",
    [
        ("visual.blocks.0.norm1.weight", "model.visual.blocks.0.norm1.weight"),
        ("model.layers.0.mlp.up_proj.weight", "model.language_model.layers.0.mlp.up_proj.weight"),
        ("model.language_model.norm.weight", "model.language_model.norm.weight"),
        ("model.visual.merger.ln_q.weight", "model.visual.merger.ln_q.weight"),
        ("lm_head.weight", "lm_head.weight"),
    ],
)
def test_names_of_every_release_are_understood(name, canonical):
    assert canonical_name(name) == canonical


def test_prepare_converts_once_and_leaves_ours_alone(tiny_dir, stock_dir, tmp_path):
    assert prepare_policy(tiny_dir, SCENES, tmp_path) == tiny_dir
    folder = prepare_policy(stock_dir, SCENES, tmp_path)
    written = (folder / "config.json").stat().st_mtime_ns
    assert prepare_policy(stock_dir, SCENES, tmp_path) == folder
    assert (folder / "config.json").stat().st_mtime_ns == written
    assert prepare_policy(stock_dir, ScenesConfig(tau=0.3), tmp_path) != folder
    with pytest.raises(PolicyFilesError, match=r"no config\.json"):
        prepare_policy(tmp_path / "nowhere", SCENES, tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "preprocessor_config.json",
        "generation_config.json",
    ],
)
def test_a_file_that_is_replaced_or_new_makes_another_conversion(tmp_path, name):
    def where():
        return converted_folder(tmp_path, SCENES, "cache", 0)

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("of no meaning")
    first, file = where(), tmp_path / name
    file.write_text("one")
    one = where()
    assert one == where() != first
    (tmp_path / "README.md").unlink()
    assert one == where()
    changed = file.stat().st_mtime_ns
    file.write_text("other")
    os.utime(file, ns=(changed, changed))  # as a copy that keeps times
    assert where() != one
    file.write_text("one")
    os.utime(file, ns=(changed, changed + 1))  # of the same size
    assert where() != one


def test_another_converter_makes_another_conversion(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    before = converted_folder(tmp_path, SCENES, "cache", 0)
    monkeypatch.setattr(convert, "CONVERTER", convert.CONVERTER + 1)
    assert converted_folder(tmp_path, SCENES, "cache", 0) != before


def test_unreadable_weights_are_named_and_leave_nothing_behind(stock_dir, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in stock_dir.iterdir():
        (broken / path.name).write_bytes(
            path.read_bytes()[:4096] if path.suffix == ".safetensors" else path.read_bytes()
        )
    with pytest.raises(PolicyFilesError, match=r"model.safetensors: cannot be read"):
        convert_stock_checkpoint(broken, tmp_path / "ours", SCENES)
    assert {path.name for path in tmp_path.iterdir()} == {"broken"}
