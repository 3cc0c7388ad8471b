"""The probe of an engine's kernels, on a model as vLLM loads it, without an engine around it."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.vllm

ROOT = Path(__file__).parents[4]


def test_what_depends_on_the_batch_is_named_and_nothing_else():
    """In a process of its own, for vLLM keeps its parallel state in globals."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, __file__], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("nothing") == ["multiples of 64 rows", []]
    for fault, (_, varying) in found.items():
        assert varying, fault
        assert all(name.startswith(fault) for name in varying), varying
    assert found["linear layers"][0] == "multiples of 1 rows"


def load(folder):
    """A tiny policy as a worker holds it, with what LiveWeights needs of the worker."""
    import torch
    from vllm import EngineArgs
    from vllm.config import set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.model_executor.layers.attention import Attention
    from vllm.model_executor.model_loader import get_model
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionMetadataBuilder

    from actors.engine.settings import engine_arguments
    from rl.config.policy import PolicyConfig, ScenesConfig, TinyPolicyConfig
    from rl.config.rollout import EngineConfig
    from rl.policy.tiny import build_tiny_policy
    from rl.policy.vllm.live_weights import LiveWeights

    torch.accelerator.empty_cache = lambda: None  # as vLLM's CPU worker does
    tiny = TinyPolicyConfig(hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=1)
    policy_dir = build_tiny_policy(tiny, ScenesConfig(), f"{folder}/policy", seed=0)
    engine = EngineConfig(kv_cache_bytes=2**20)
    arguments = engine_arguments(policy_dir, PolicyConfig(), engine, 0, on_cpu=True, deterministic=True)
    config = EngineArgs(**arguments).create_engine_config()
    with set_current_vllm_config(config):
        init_distributed_environment(1, 0, f"file://{folder}/rendezvous", 0, "gloo")
        initialize_model_parallel(1, 1)
        model = get_model(vllm_config=config)
        layers = {layer.layer_name: layer for layer in model.modules() if isinstance(layer, Attention)}
        spec = next(iter(layers.values())).get_kv_cache_spec(config)
        builder = CPUAttentionMetadataBuilder(spec, list(layers), config, torch.device("cpu"))
    worker = LiveWeights()
    worker.get_model, worker.cache_config = lambda: model, config.cache_config
    worker.model_runner = SimpleNamespace(attn_groups=[[SimpleNamespace(get_metadata_builder=lambda: builder)]])
    return worker, model


def main():
    from rl.policy.vllm.plugin import engine_environment, register

    os.environ.update(engine_environment("cpu"))
    register()
    from vllm.model_executor.layers.layernorm import RMSNorm
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

    from rl.policy.batch_invariant import PADDINGS, RowPadding

    def larger_in_batches(function, rows_of):
        """The function, with other last bits where there is more than one row."""

        def changed(*arguments, **named):
            result = function(*arguments, **named)
            return result * (1 + 2**-20) if rows_of(*arguments, **named) > 1 else result

        return changed

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        worker, model = load(folder)
        found = {"nothing": worker.make_batch_invariant(PADDINGS)}
        found["linear layers"] = worker.make_batch_invariant((RowPadding(1),))
        with patch.context() as attention:
            forward = CPUAttentionBackendImpl.forward
            attention.setattr(
                CPUAttentionBackendImpl,
                "forward",
                larger_in_batches(forward, lambda _, layer, queries, *rest: len(queries)),
            )
            found["attention"] = worker.make_batch_invariant(PADDINGS)
        with patch.context() as vision:
            calls = []
            forward = model.visual.forward
            tower = larger_in_batches(forward, lambda *_, **__: calls.append(0) or len(calls) % 2 + 1)
            vision.setattr(model.visual, "forward", tower)
            found["the vision tower"] = worker.make_batch_invariant(PADDINGS)
        with patch.context() as norm:
            forward = RMSNorm.forward_native

            def with_rows(layer, x, residual=None):
                scale = 1 + 2**-20 if len(x) > 1 else 1
                result = forward(layer, x, residual)
                return result * scale if residual is None else (result[0] * scale, result[1])

            norm.setattr(RMSNorm, "forward_native", with_rows)
            for layer in model.modules():
                if isinstance(layer, RMSNorm):
                    norm.setattr(layer, "_forward_method", layer.forward_native)
            found["RMSNorm"] = [
                found["nothing"][0],
                [n for n in worker.make_batch_invariant(PADDINGS)[1] if n.startswith("RMSNorm")],
            ]
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
