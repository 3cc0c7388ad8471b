"""A policy written by several ranks is the folder that one would have written, in as many files as it is large."""

from functools import partial

import pytest
import torch

from rl.config.policy import ScenesConfig, TinyPolicyConfig
from rl.learner.policy_copy import copy_policy, place_weights
from rl.learner.rank_files import Layout
from rl.policy.model import load_policy, map_policy, save_all_but_weights, save_policy
from rl.policy.processor import Processor
from rl.policy.tiny import build_tiny_policy
from rl.policy.weight_files import read_weights

SCENES = ScenesConfig()
TINY = TinyPolicyConfig(hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=1, vocab_size=600)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_tiny_policy(TINY, SCENES, tmp_path_factory.mktemp("policy"), seed=3)


@pytest.fixture(scope="module")
def model(folder):
    return load_policy(folder, SCENES, "bfloat16")


@pytest.fixture(scope="module")
def write(folder, model):
    """`write(target, world, file_bytes)`: every rank's copy is written; the files of each."""
    rest = partial(save_all_but_weights, model, Processor.from_pretrained(folder, SCENES))
    named = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def write(target, world, file_bytes):
        placed = place_weights({name: (tensor.shape, tensor.dtype) for name, tensor in named.items()}, file_bytes)
        copies = [
            copy_policy(lambda wanted: ((name, named[name]) for name in wanted), placed, Layout(3, world, rank), rest)
            for rank in range(world)
        ]
        return [copy.write(target) for copy in copies]

    return write


def test_a_small_policy_is_the_very_folder_that_transformers_writes(folder, model, write, tmp_path):
    mine, others = write(tmp_path / "ours", world=2, file_bytes=10**9)
    save_policy(model, Processor.from_pretrained(folder, SCENES), tmp_path / "stock")
    assert others == []
    assert sorted(path.name for path in mine) == sorted(path.name for path in (tmp_path / "stock").iterdir())
    for path in mine:
        assert path.read_bytes() == (tmp_path / "stock" / path.name).read_bytes(), path.name


def test_a_large_policy_is_dealt_over_the_ranks_and_loads_as_it_was(model, write, tmp_path):
    written = write(tmp_path, world=3, file_bytes=200_000)
    again = load_policy(tmp_path, SCENES, "bfloat16")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert sorted(path for paths in written for path in paths) == sorted(tmp_path.iterdir())
    sizes = [sum(path.stat().st_size for path in paths if path.suffix == ".safetensors") for paths in written]
    assert max(sizes) < 0.6 * sum(sizes)
    assert len(read_weights(tmp_path)) == 5


def test_the_copy_does_not_follow_the_weights(model, write, tmp_path):
    name, parameter = next(iter(model.named_parameters()))
    placed = place_weights({name: (parameter.shape, parameter.dtype)})
    copied = copy_policy(lambda wanted: [(name, parameter.detach())], placed, Layout(0, 1, 0), lambda folder: None)
    with torch.no_grad():
        parameter += 1
    assert not torch.equal(copied.weights["model.safetensors"][name], parameter)


def test_a_mapped_policy_has_the_type_it_is_stored_in_and_never_writes_to_its_files(write, tmp_path):
    write(tmp_path, world=1, file_bytes=10**9)
    before = (tmp_path / "model.safetensors").read_bytes()
    mapped = map_policy(tmp_path, SCENES)
    assert {parameter.dtype for parameter in mapped.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        for parameter in mapped.parameters():
            parameter.zero_()
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_files_that_another_rank_is_still_writing_are_its_own(write, tmp_path):
    """safetensors writes under a passing name beside the file."""
    folder = tmp_path / "policy"
    folder.mkdir()
    passing = folder / ".tmpoX4Pd0"
    passing.write_bytes(b"half of a file")
    first, *_ = write(folder, world=2, file_bytes=200_000)
    assert passing not in first and all(path.parent == folder and path.is_file() for path in first)
    assert {path.name for path in tmp_path.iterdir()} == {"policy"}
