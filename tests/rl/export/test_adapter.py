"""What LoRA has trained, exported: loaded by stock peft onto the exported base it is the policy with its updates."""

import json
import math
import shutil
from dataclasses import asdict

import numpy as np
import peft
import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_tensors
from transformers import AutoModelForImageTextToText, AutoProcessor

from rl.checkpoint.store import CheckpointStore
from rl.config.errors import ConfigError
from rl.config.file import load_config
from rl.config.policy import LoraConfig
from rl.export.export_run import adapter_export, base_export, run_export
from rl.learner.rank_files import Fragment, Layout, metadata
from rl.policy.lora import add_lora, named_weights
from rl.policy.model import load_policy, save_all_but_weights
from rl.policy.processor import Processor
from rl.run.prepare.policy import prepare_policy
from rl.run.resume import checkpoint_of
from rl.trajectory import RunState
from tests.rl.export.conftest import SCENES


def settings(**changed):
    """A change of adapter_config.json."""

    def damage(folder):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    return damage


def tensors(kept, layer=0):
    """A change of the weights' file: names that are kept, or tensors that stand for them; `layer` for layer 0."""

    def damage(folder):
        path = folder / "adapter_model.safetensors"
        found = {name: kept(name, value) for name, value in load_file(path).items()}
        changed = {
            name.replace("layers.0.", f"layers.{layer}."): load_file(path)[name] if value is True else value
            for name, value in found.items()
            if value is not False
        }
        save_file(changed, path)

    return damage


def narrower(name, value):
    return value[:, :-1].copy() if name.endswith("lora_A.weight") else value


def as_policy(folder):
    (folder / "adapter_config.json").rename(folder / "config.json")


def as_pickle(folder):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def config_of(policy, home, adapter):
    settings = [f"policy.path={policy}", f"policy.adapter={adapter}", f"cache_dir={home / 'cache'}"]
    return load_config(["configs/quickstart.yaml"], settings)


def weights_of(folder):
    return {name: value.tobytes() for name, value in load_file(folder / "model.safetensors").items()}


TARGETS = {
    "language": LoraConfig(rank=4, alpha=12.0, targets=["q_proj", "down_proj"]),
    "everywhere": LoraConfig(rank=2, targets=["v_proj", "visual.qkv"], full=["merger", "lm_head"]),
}
REWARDS = "rewards: {answer: {fn: answer, segment: reasoning, weight: 1.0}}\n"
RANKS = 2


def write_run(home, policy, lora):
    """A run of LoRA whose two ranks (ZeRO 1) have moved everything that trains."""
    model = load_policy(policy, SCENES)
    if lora.rank:
        add_lora(model, lora, seed=0)
    torch.manual_seed(1)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    store = CheckpointStore(home)
    draft = store.begin(3)
    write_rank_files(draft, {name: p.detach().numpy() for name, p in trained.items()})
    (draft / "policy").mkdir()
    save_all_but_weights(model, Processor.from_pretrained(policy, SCENES), draft / "policy")
    merged = {one.name: one.value().contiguous() for one in named_weights(model)}
    save_tensors(merged, draft / "policy" / "model.safetensors", metadata={"format": "pt"})
    told = json.dumps(asdict(lora))
    store.commit(draft, RunState(3, 3, 0), f"name: small\npolicy: {{path: {policy}, lora: {told}}}\n{REWARDS}")
    return home


def write_rank_files(folder, trained):
    """Of all parameters laid end to end every rank has an equal stretch."""
    flat = np.concatenate([value.ravel() for value in trained.values()])
    size = math.ceil(len(flat) / RANKS)
    shapes = {name: value.shape for name, value in trained.items()}
    for rank in range(RANKS):
        fragments, place = [], 0
        for name, value in trained.items():
            first, end = max(place, rank * size), min(place + value.size, (rank + 1) * size)
            if first < end:
                fragments.append(Fragment(name, first - place, end - first, "group_0", first - rank * size))
            place += value.size
        said = metadata(Layout(1, RANKS, rank), 3, shapes, fragments)
        kept = {"group_0.master": flat[rank * size : (rank + 1) * size]}
        save_file(kept, folder / f"rank_{rank}.safetensors", metadata=said)


@pytest.fixture(scope="module")
def adapter(policy, tmp_path_factory):
    home = tmp_path_factory.mktemp("adapter")
    adapter_export(write_run(home / "run", policy, TARGETS["language"]), home / "adapter", Console(quiet=True))
    return home / "adapter"


@pytest.mark.parametrize("targets", TARGETS)
def test_stock_peft_loads_it_onto_the_exported_base(policy, clip, tmp_path, targets):
    run = write_run(tmp_path / "run", policy, TARGETS[targets])
    run_export(run, tmp_path / "merged")
    adapter_export(run, tmp_path / "adapter", Console(quiet=True))
    base_export(run, tmp_path / "base", Console(quiet=True))

    processor = AutoProcessor.from_pretrained(tmp_path / "base", trust_remote_code=True)
    frames, times_s = clip
    inputs = processor.ask("Which colour?", (frames, {"times_s": times_s}))
    base, merged = (
        AutoModelForImageTextToText.from_pretrained(tmp_path / name, dtype=torch.float32, trust_remote_code=True)
        for name in ("base", "merged")
    )
    with torch.no_grad():
        before = base(**inputs).logits
        adapted = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))(**inputs).logits
        expected = merged(**inputs).logits
    assert (before - expected).abs().max() > 1e-2
    torch.testing.assert_close(adapted, expected, rtol=0, atol=1e-4)
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "PeftModel.from_pretrained" in card and "`policy.lora.rank`" in card


@pytest.mark.parametrize("targets", TARGETS)
def test_a_policy_with_its_adapter_added_is_the_merged_one_bit_for_bit(policy, tmp_path, targets):
    run = write_run(tmp_path / "run", policy, TARGETS[targets])
    adapter_export(run, tmp_path / "adapter", Console(quiet=True))
    prepared = prepare_policy(config_of(policy, tmp_path, tmp_path / "adapter"))
    assert weights_of(prepared) == weights_of(checkpoint_of(run).folder / "policy")
    assert prepare_policy(config_of(policy, tmp_path, tmp_path / "adapter")) == prepared  # found, not made again


def test_an_adapter_whose_settings_change_is_added_anew(policy, adapter, tmp_path):
    shutil.copytree(adapter, tmp_path / "adapter")
    before = prepare_policy(config_of(policy, tmp_path, tmp_path / "adapter"))
    settings(lora_alpha=24.0)(tmp_path / "adapter")
    after = prepare_policy(config_of(policy, tmp_path, tmp_path / "adapter"))
    assert weights_of(after) != weights_of(before)


def test_pefts_own_adapter_is_added_too(policy, tmp_path):
    model = load_policy(policy, SCENES)
    names = [name for name, _ in model.named_modules() if name.endswith("self_attn.o_proj")]
    stock = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=3, target_modules=names, use_rslora=True))
    for name, parameter in stock.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    stock.save_pretrained(tmp_path / "adapter")
    prepared = prepare_policy(config_of(policy, tmp_path, tmp_path / "adapter"))
    expected = stock.merge_and_unload().state_dict()
    for name, weight in load_policy(prepared, SCENES).state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("damage", "said"),
    {
        "no adapter": (lambda folder: (folder / "adapter_config.json").unlink(), "no file .*adapter_config.json"),
        "a policy": (as_policy, "is a policy: give it as policy.path"),
        "torn settings": (lambda folder: (folder / "adapter_config.json").write_text("{"), "cannot be read as JSON"),
        "another kind": (settings(peft_type="IA3"), "peft_type is 'IA3'; only adapters of LoRA"),
        "DoRA": (settings(use_dora=True), "use_dora=True is more than .*merge_and_unload"),
        "ranks of layers": (settings(rank_pattern={"q_proj": 8}), "rank_pattern=.* is more than"),
        "no alpha": (settings(lora_alpha=None), "lora_alpha=None: neither may be missing"),
        "another rank": (settings(r=5), "are of ranks 4 and 4, adapter_config.json says r=5"),
        "a pickle": (as_pickle, "adapter_model.bin: weights as a pickle run code"),
        "half of a pair": (tensors(lambda name, _: not name.endswith("lora_B.weight")), "no matrix .*lora_B.weight"),
        "another size": (
            tensors(narrower),
            r"an adapter of another policy than .*: it has .* of \(.*give as policy.path",
        ),
        "more layers": (tensors(lambda name, _: True, layer=7), r"it has .*layers.7.*, which .* has not"),
    }.values(),
)
def test_an_adapter_that_cannot_be_added_is_refused_with_file_and_remedy(policy, adapter, tmp_path, damage, said):
    shutil.copytree(adapter, tmp_path / "adapter")
    damage(tmp_path / "adapter")
    with pytest.raises(ConfigError, match=said):
        prepare_policy(config_of(policy, tmp_path, tmp_path / "adapter"))
    assert not list(tmp_path.glob("cache/with-adapter-*"))


def test_the_adapter_of_another_policy_of_the_same_size_is_told_by_its_digest(policy, adapter, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(policy, other)
    weights = load_file(other / "model.safetensors")
    weights["lm_head.weight"] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"an adapter of another policy than .*digest .*export RUN BASE --base"):
        prepare_policy(config_of(other, tmp_path, adapter))


def test_what_was_trained_in_full_has_no_adapter(policy, tmp_path):
    run = write_run(tmp_path / "run", policy, LoraConfig())
    with pytest.raises(ConfigError, match=r"trained all parameters .*: export it without --adapter"):
        adapter_export(run, tmp_path / "out", Console(quiet=True))
    assert not (tmp_path / "out").exists()
