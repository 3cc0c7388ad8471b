"""Weights of an engine on several GPUs, summed up from the shards that vLLM's own layers hold."""

import pytest
import torch
from safetensors.torch import load_file

from rl.weight_transfer.checksum import checksum

pytestmark = pytest.mark.vllm


def added_up(shards):
    """Of one parameter, from every worker's shard."""
    from rl.policy.vllm.live_weights import add_up, shard_sums

    return list(add_up([(shard.kind, *shard_sums(shard, rank).tolist()) for rank, shard in enumerate(shards)]))


def modulo(pairs):
    return [tuple(value % 2**64 for value in pair) for pair in pairs]


# of 4, two hold each head of keys and values
@pytest.mark.parametrize(("workers", "tied", "family"), [(2, True, "qwen2_5_vl"), (4, False, "qwen3_vl")])
def test_every_parameters_checksum_comes_out_of_the_shards_of_all_workers(
    build_policy, load_model, family, workers, tied
):
    from rl.policy.vllm.live_weights import WHOLE, live_shard

    policy_dir = build_policy(family, tied)
    stored = load_file(policy_dir / "model.safetensors")
    models = [load_model(policy_dir, workers, rank).model for rank in range(workers)]
    cut = set()
    for name, value in stored.items():
        shards = [live_shard(model, name) for model in models]
        assert modulo(added_up(shards)) == modulo([checksum(value).tolist()]), name
        assert shards[0].shape == value.shape
        cut |= {name} if shards[0].kind != WHOLE else set()
    assert not [name for name in cut if "visual" in name or "norm" in name]  # whole on every GPU
    assert ("lm_head.weight" in cut) == (not tied)
    assert {name.rsplit(".", 2)[-2] for name in cut if "layers.0." in name} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }


@pytest.mark.parametrize(
    "name", ["model.language_model.layers.1.self_attn.k_proj.weight", "model.visual.merger.norm.weight"]
)
def test_a_worker_that_holds_something_else_than_its_neighbour_shows(build_policy, load_model, name):
    from rl.policy.vllm.live_weights import live_shard

    policy_dir = build_policy("qwen3_vl", False)
    right = modulo([checksum(load_file(policy_dir / "model.safetensors")[name]).tolist()])
    shards = [live_shard(load_model(policy_dir, 4, rank).model, name) for rank in range(4)]
    assert modulo(added_up(shards)) == right
    for shard in shards:
        shard.tensor.view(-1)[0] += 1
        assert len(added_up(shards)) == 2
        shard.tensor.view(-1)[0] -= 1


def test_memory_on_a_gpu_is_what_tensors_take_not_what_pytorch_keeps_for_the_next_video(monkeypatch):
    """Growth of it replaces an engine: kept memory swings with the largest video encoded."""
    from rl.policy.vllm.live_weights import LiveWeights

    assert LiveWeights().device_memory_mib() == 0.0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 3 * 2**20)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 7 * 2**20)
    assert LiveWeights().device_memory_mib() == 3.0
