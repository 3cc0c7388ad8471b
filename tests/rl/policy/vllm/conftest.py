"""Tiny policies as a worker of vLLM holds them, whole or one GPU's shard of them, without an engine around."""

import functools
from types import SimpleNamespace

import pytest

from actors.engine.settings import engine_arguments
from rl.config.policy import PolicyConfig, ScenesConfig, TinyPolicyConfig
from rl.config.rollout import EngineConfig
from rl.policy.tiny import build_tiny_policy


@pytest.fixture(scope="session")
def build_policy(tmp_path_factory):
    """(family, tied head) -> a policy of four heads of queries, two of keys and values, and two levels of DeepStack."""

    @functools.cache
    def build(family, tied):
        tiny = TinyPolicyConfig(family=family, num_layers=2, vision_layers=3, vocab_size=600)
        return build_tiny_policy(tiny, ScenesConfig(), tmp_path_factory.mktemp("policy"), seed=0, tied=tied)

    return build


@pytest.fixture
def as_on_a_gpu():
    """vLLM's configuration with the settings of a GPU, but for the number of GPUs."""
    from vllm import EngineArgs

    from rl.policy.vllm.plugin import register

    register()

    def configure(folder, **engine):
        arguments = engine_arguments(folder, PolicyConfig(), EngineConfig(**engine), 0, on_cpu=False)
        return EngineArgs(**arguments).create_engine_config()

    return configure


@pytest.fixture
def load_model(as_on_a_gpu, tmp_path, monkeypatch):
    """(folder, workers, rank) -> the model as that worker of a tensor-parallel engine loads it; its configuration."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.distributed import (
        destroy_distributed_environment,
        destroy_model_parallel,
        init_distributed_environment,
        initialize_model_parallel,
        parallel_state,
    )
    from vllm.model_executor.model_loader import get_model

    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: None)  # as vLLM's CPU worker does

    def load(folder, workers=1, rank=0):
        config = as_on_a_gpu(folder)
        config.model_config.multimodal_config.mm_encoder_tp_mode = "data" if workers > 1 else "weights"
        with set_current_vllm_config(config):
            if not parallel_state.model_parallel_is_initialized():
                init_distributed_environment(1, 0, f"file://{tmp_path}/rendezvous", 0, "gloo")
                initialize_model_parallel(1, 1)
            group = parallel_state.get_tp_group()
            with monkeypatch.context() as one_of_several:
                one_of_several.setattr(group, "world_size", workers)
                one_of_several.setattr(group, "rank_in_group", rank)
                return SimpleNamespace(model=get_model(vllm_config=config), config=config)

    yield load
    destroy_model_parallel()
    destroy_distributed_environment()
