"""A checkpoint that cannot become a policy is refused in one line: file, key or tensor, and remedy."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from rl.config.policy import ScenesConfig
from rl.policy.conversion import plan_conversion, require_weights
from rl.policy.convert import convert_stock_checkpoint, prepare_policy
from rl.policy.given_folder import require_usable
from rl.policy.stock.make import make_checkpoint
from rl.policy.tiny_tokenizer import train_tokenizer
from rl.policy.token_ids import PolicyFilesError
from tests.rl.policy.stock.test_make import small

SCENES, INDEX = ScenesConfig(), "model.safetensors.index.json"
HEAD, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"
PROJECTION = "model.language_model.layers.2.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A head of its own, nested configuration, several shards."""
    folder = tmp_path_factory.mktemp("sound") / "folder"
    return make_checkpoint(small("qwen3_vl", "8b"), folder, vocabulary="tiny", shard_gb=0.001)


@pytest.fixture
def folder(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "folder")


def edit(path, **keys):
    content = json.loads(path.read_text())
    for key, value in keys.items():
        section, _, name = key.rpartition("__")
        (content[section] if section else content)[name] = value
    path.write_text(json.dumps(content))


def shard_of(folder, tensor):
    return folder / json.loads((folder / INDEX).read_text())["weight_map"][tensor]


def alter(folder, tensor, change):
    """Store another tensor under that name, or none."""
    path = shard_of(folder, tensor)
    tensors = load_file(path)
    changed = change(tensors.pop(tensor))
    save_file(tensors | ({} if changed is None else {tensor: changed}), path, metadata={"format": "pt"})


def drop(folder, tensor):
    """From its shard and from the index."""
    alter(folder, tensor, lambda _: None)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"].pop(tensor)
    (folder / INDEX).write_text(json.dumps(index))


def cut_off(path, by):
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size - by)


def write_tokenizer(folder, *, size=1024, without=""):
    text = train_tokenizer(size, tags=False).to_str()
    (folder / "tokenizer.json").write_text(text.replace(without, "<|other|>") if without else text)


AT_A_GLANCE = {  # without torch: the first thing that any command does
    "quantised": (
        lambda f: edit(f / "config.json", quantization_config={"quant_method": "awq", "bits": 4}),
        r"config\.json: quantization_config \(awq\): a quantised checkpoint cannot be trained; take",
    ),
    "quantised within": (
        lambda f: edit(f / "config.json", text_config__quantization_config={"quant_method": "fp8"}),
        r"config\.json: quantization_config \(fp8\)",
    ),
    "int8 weights": (
        lambda f: alter(f, PROJECTION, lambda weight: weight.to(torch.int8)),
        rf"safetensors: {PROJECTION} is I8: quantised weights cannot be trained; take the checkpoint in bfloat16",
    ),
    "fp8 weights": (
        lambda f: alter(f, PROJECTION, lambda weight: weight.to(torch.float8_e4m3fn)),
        rf"safetensors: {PROJECTION} is F8_E4M3: quantised weights",
    ),
    "a shard is missing": (
        lambda f: shard_of(f, PROJECTION).unlink(),
        rf"model-0000\d-of-0000\d\.safetensors: no such file, and {INDEX} places .* in it; download it again",
    ),
    "the index names another file": (
        lambda f: edit(f / INDEX, weight_map__x="model-00009-of-00009.safetensors"),
        rf"model-00009-of-00009\.safetensors: no such file, and {INDEX} places x in it",
    ),
    "the index names another tensor": (
        lambda f: alter(f, HEAD, lambda _: None),
        rf"safetensors: no tensor {HEAD} in it, where {INDEX} places it: .*; download both again",
    ),
    "a shard was cut off": (
        lambda f: cut_off(shard_of(f, HEAD), 1),
        r"safetensors: cannot be read: [\d,]+ bytes, its header promises [\d,]+: the file was cut off",
    ),
    "a shard was cut off in its header": (
        lambda f: shard_of(f, HEAD).write_bytes(shard_of(f, HEAD).read_bytes()[:100]),
        r"safetensors: cannot be read: not a safetensors file; was it downloaded in full\?",
    ),
    "the index is none": (lambda f: (f / INDEX).write_text("[]"), rf"{INDEX}: not an index of weights"),
    "two sets of weights": (
        lambda f: save_file({HEAD: torch.zeros(1)}, f / "model.safetensors"),
        rf"model\.safetensors beside {INDEX}: .* delete the one that is not the model's",
    ),
    "no weights": (
        lambda f: [path.unlink() for path in f.glob("model*")],
        rf"no weights: neither {INDEX} nor model\.safetensors",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), r"tokenizer\.json: no such file"),
    "a tokenizer that is none": (
        lambda f: (f / "tokenizer.json").write_text("{}"),
        r"tokenizer\.json: not a tokenizer",
    ),
    "a tokenizer of a text model": (
        lambda f: write_tokenizer(f, without="<|vision_start|>"),
        r"tokenizer\.json: has no <\|vision_start\|>: another model's tokenizer; copy .* from Qwen/Qwen3",
    ),
    "a larger tokenizer": (
        lambda f: edit(f / "config.json", text_config__vocab_size=640),
        r"tokenizer\.json: \d+ tokens, the embedding has 640 rows \(vocab_size in config\.json\): another model's",
    ),
    "a tokenizer with other ids": (
        lambda f: write_tokenizer(f, size=400),
        r"config\.json has \w+=\d+, tokenizer\.json numbers <\|\w+\|> \d+: they are of different checkpoints",
    ),
}
BY_THE_MODEL = {  # against the model that config.json describes
    "no head, and none that is tied": (
        lambda f: drop(f, HEAD),
        rf"no tensor {HEAD} in its weights \(config\.json has tie_word_embeddings=false\); download",
    ),
    "a wrong shape": (
        lambda f: alter(f, PROJECTION, lambda weight: weight[:128].contiguous()),
        rf"safetensors: {PROJECTION} has shape \(128, 256\), config\.json asks for \(256, 256\)",
    ),
    "another embedding": (
        lambda f: alter(f, EMBEDDING, lambda weight: weight[:512].contiguous()),
        rf"safetensors: {EMBEDDING} has shape \(512, 256\), config\.json asks for \(1024, 256\)",
    ),
    "layers are missing": (
        lambda f: edit(f / "config.json", text_config__num_hidden_layers=4),
        r"no tensor model\.language_model\.layers\.3\.\S+ and 10 more in its weights; download the checkpoint again",
    ),
    "layers too many": (
        lambda f: edit(f / "config.json", text_config__num_hidden_layers=2),
        r"safetensors: model\.language_model\.layers\.2\.\S+ is of no part of the qwen3_vl that config\.json describes",
    ),
}


@pytest.mark.parametrize("case", AT_A_GLANCE)
def test_what_is_broken_is_seen_at_a_glance(case, folder):
    spoil, message = AT_A_GLANCE[case]
    require_usable(folder)
    spoil(folder)
    with pytest.raises(PolicyFilesError, match=message) as refusal:
        require_usable(folder)
    assert str(refusal.value).startswith(str(folder)) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("case", BY_THE_MODEL)
def test_weights_of_another_model_are_refused_before_anything_is_written(case, folder, tmp_path):
    spoil, message = BY_THE_MODEL[case]
    spoil(folder)
    with pytest.raises(PolicyFilesError, match=message) as refusal:
        convert_stock_checkpoint(folder, tmp_path / "ours", SCENES)
    assert str(refusal.value).startswith(str(folder)) and "\n" not in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_folder_of_ours_is_looked_at_likewise(sound, tmp_path):
    ours = convert_stock_checkpoint(sound, tmp_path / "ours", SCENES)
    require_weights(ours)
    alter(ours, PROJECTION, lambda weight: weight[:128].contiguous())
    with pytest.raises(PolicyFilesError, match=rf"{PROJECTION} has shape \(128, 256\)"):
        require_weights(ours)


def test_a_tied_head_that_the_checkpoint_ships_is_left_out_if_it_is_a_copy_and_refused_if_not(tmp_path):
    folder = make_checkpoint(small("qwen3_vl", "4b"), tmp_path / "folder", vocabulary="tiny")
    tensors = load_file(folder / "model.safetensors")
    copy = tensors[EMBEDDING].clone()
    save_file(tensors | {HEAD: copy}, folder / "model.safetensors", metadata={"format": "pt"})
    assert HEAD not in {name for names in plan_conversion(folder, SCENES).files.values() for name in names}
    copy[-1] += 1
    save_file(tensors | {HEAD: copy}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PolicyFilesError, match=rf"{HEAD} is not the embedding, though .*tie_word_embeddings=true"):
        plan_conversion(folder, SCENES)


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(sound, tmp_path, monkeypatch):
    monkeypatch.setattr("rl.policy.weight_files.SPARE_BYTES", 2**60)
    with pytest.raises(PolicyFilesError, match=r"the converted copy of .* takes 0\.0 GiB .* free: make room"):
        convert_stock_checkpoint(sound, tmp_path / "cache" / "ours", SCENES)
    assert list(tmp_path.iterdir()) == []


def test_two_runs_that_convert_at_once_both_get_the_folder(sound, tmp_path, monkeypatch):
    def convert_slowly(source, target, *rest):
        convert_stock_checkpoint(source, target, *rest)  # the other run is faster
        return convert_stock_checkpoint(source, target, *rest)

    monkeypatch.setattr("rl.policy.convert.convert_stock_checkpoint", convert_slowly)
    folder = prepare_policy(sound, SCENES, tmp_path)
    assert (folder / "config.json").is_file() and [path.name for path in folder.parent.iterdir()] == [folder.name]
