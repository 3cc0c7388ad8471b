"""An engine of two workers inside an actor of a placement group, as on two GPUs; here on the CPU."""

import os

import pytest

from rl.config.policy import PolicyConfig, ScenesConfig, TinyPolicyConfig
from rl.config.rollout import EngineConfig
from rl.config.trainer import PlacementConfig
from rl.trajectory import GenerateRequest, Sampling

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.soak]

PROMPT = (5, 6, 7, 8)
CPU = {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


class Worker:
    """A rollout worker's engine, with the driver of GPUs."""

    def __init__(self, folder):
        from actors.engine.async_driver import AsyncDriver
        from actors.engine.engine import VllmEngine

        two = EngineConfig(tensor_parallel_size=2)
        self._engine = VllmEngine(folder, PolicyConfig(scenes=ScenesConfig()), two, 0, driver=AsyncDriver)

    async def generate(self):
        return await self._engine.generate(GenerateRequest("r", PROMPT, (), Sampling(4)))

    def workers(self):
        return len(self._engine._driver.call("count_encoded_items"))

    def close(self):
        self._engine.close()


def test_it_starts_beside_a_placement_group_that_vllm_would_hand_to_ray(ray_cluster, tmp_path):
    from actors.cluster.placement import Demand, Slots
    from rl.policy.tiny import build_tiny_policy

    folder = build_tiny_policy(TinyPolicyConfig(), ScenesConfig(), tmp_path, seed=0)
    slots = Slots(PlacementConfig(rollout_cpus=2), Demand(rollout=1, reward=0, learner=0), "two")
    environment = CPU | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    options = slots.options("rollout", 0) | {"runtime_env": {"env_vars": environment}}
    try:
        worker = ray_cluster.remote(Worker).options(**options).remote(str(folder))
        assert len(ray_cluster.get(worker.generate.remote(), timeout=500).token_ids) == 4
        assert ray_cluster.get(worker.workers.remote(), timeout=60) == 2
        ray_cluster.get(worker.close.remote(), timeout=120)
    finally:
        slots.release()
