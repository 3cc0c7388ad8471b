"""What vLLM makes of our settings, by its own configuration; no engine is started."""

import pytest

from actors.engine.settings import engine_arguments
from rl.config.errors import ConfigError
from rl.config.policy import PolicyConfig
from rl.config.rollout import EngineConfig

pytestmark = pytest.mark.vllm


@pytest.fixture
def in_a_placement_group(monkeypatch):
    import ray
    import ray.util

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray.util, "get_current_placement_group", lambda: object())


def parallel(gpus: int, **changed):
    from vllm.config import ParallelConfig

    arguments = engine_arguments("policy", PolicyConfig(), EngineConfig(tensor_parallel_size=gpus), 0, on_cpu=False)
    chosen = {"distributed_executor_backend": arguments["distributed_executor_backend"], **changed}
    return ParallelConfig(tensor_parallel_size=arguments.get("tensor_parallel_size", 1), **chosen)


def test_an_engine_on_several_gpus_of_one_worker_runs_them_as_its_own_processes(in_a_placement_group):
    from types import SimpleNamespace

    from vllm.v1.executor import Executor
    from vllm.v1.executor.multiproc_executor import MultiprocExecutor

    assert parallel(2, distributed_executor_backend=None).use_ray  # what vLLM chooses by itself in a placement group
    config = parallel(2)
    assert not config.use_ray
    assert Executor.get_class(SimpleNamespace(parallel_config=config)) is MultiprocExecutor


def test_an_engine_on_one_gpu_needs_no_worker_processes(in_a_placement_group):
    config = parallel(1)
    assert config.distributed_executor_backend == "uni"
    assert config.world_size == 1


@pytest.mark.parametrize("context", [1024, 8192, 24576])
def test_a_video_as_long_as_the_context_is_within_the_encoders_budget(context):
    """vLLM's budget is at least what it prefills at a time; a larger item would never be scheduled."""
    arguments = engine_arguments("policy", PolicyConfig(), EngineConfig(max_model_len=context), 0, on_cpu=False)
    assert arguments["max_num_batched_tokens"] >= context


@pytest.mark.parametrize(
    ("gpus", "is_cpu", "refusal"),
    [
        (0.0, True, ""),
        (0.5, False, ""),
        (1.0, True, r"placement\.rollout_gpus=1, but the vLLM installed on this node computes on CPUs: set up"),
        (
            0.0,
            False,
            r"placement\.rollout_gpus is 0, but the vLLM .* computes on GPUs.* reserved: set placement\.rollout_gpus=1",
        ),
    ],
)
def test_an_engine_computes_where_it_was_placed_or_does_not_start(gpus, is_cpu, refusal, monkeypatch):
    from types import SimpleNamespace

    from actors.engine import engine

    monkeypatch.setattr(engine, "current_platform", SimpleNamespace(is_cpu=lambda: is_cpu))
    if not refusal:
        engine.require_device(gpus)
        return
    with pytest.raises(ConfigError, match=refusal):
        engine.require_device(gpus)
