"""Weights of an engine on several GPUs, read back whole from the shards that vLLM's own layers hold."""

import pytest
import torch
from safetensors.torch import load_file

from rl.policy.families import FAMILIES

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("workers", "tied"), [(2, True), (4, False)])  # of 4, two hold each head of keys and values
def test_every_parameter_is_whole_again_from_the_shards_of_all_workers(build_policy, load_model, family, workers, tied):
    from rl.policy.vllm.live_weights import live_shard, put_together

    policy_dir = build_policy(family, tied)
    stored = load_file(policy_dir / "model.safetensors")
    shards_R = [load_model(policy_dir, workers, rank).model for rank in range(workers)]
    cut = set()
    for name, value in stored.items():
        parts = [live_shard(model, name) for model in shards_R]
        for rank, shard in enumerate(parts):
            whole = shard.tensor if shard.dim is None else put_together([p.tensor for p in parts], shard, rank)
            assert torch.equal(whole, value), (name, rank)
        cut |= {name} if parts[0].dim is not None else set()
    assert not [name for name in cut if "visual" in name or "norm" in name]  # whole on every GPU
    assert ("lm_head.weight" in cut) == (not tied)
    assert {name.rsplit(".", 2)[-2] for name in cut if "layers.0." in name} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }


def test_a_worker_whose_replica_of_a_head_is_wrong_sees_it_itself(build_policy, load_model):
    from rl.policy.vllm.live_weights import live_shard, put_together

    name = "model.language_model.layers.1.self_attn.k_proj.weight"
    policy_dir = build_policy("qwen3_vl", False)
    right = load_file(policy_dir / "model.safetensors")[name]
    parts = [live_shard(load_model(policy_dir, 4, rank).model, name) for rank in range(4)]
    tensors = [part.tensor for part in parts]
    for spoilt, tensor in enumerate(tensors):
        tensor[0, 0] += 1
        wrong = [not torch.equal(put_together(tensors, part, rank), right) for rank, part in enumerate(parts)]
        tensor[0, 0] = right[32 * (spoilt // 2), 0]
        assert wrong[spoilt]
        assert sum(wrong) == 2  # and the worker that has the same place beside the other head


def test_memory_on_a_gpu_is_what_tensors_take_not_what_pytorch_keeps_for_the_next_video(monkeypatch):
    """Growth of it replaces an engine: kept memory swings with the largest video encoded."""
    from rl.policy.vllm.live_weights import LiveWeights

    assert LiveWeights().device_memory_mib() == 0.0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 3 * 2**20)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 7 * 2**20)
    assert LiveWeights().device_memory_mib() == 3.0
