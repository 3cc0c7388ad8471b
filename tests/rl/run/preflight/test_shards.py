"""A policy that an engine's GPUs cannot share is refused before any of them is taken."""

import pytest

from rl.config.file import load_config
from rl.run.preflight.findings import Level
from rl.run.preflight.shards import check_shards

SEVEN = "Qwen2.5-VL-7B-Instruct"  # 28 heads, 4 of keys and values


@pytest.fixture
def check(tmp_path):
    smallest = tmp_path / "run.yaml"
    smallest.write_text("rewards: {answer: {fn: answer}}\n")

    def check(policy, gpus):
        overrides = [f"policy.path=models/{policy}", f"rollout.engine.tensor_parallel_size={gpus}"]
        return check_shards(load_config([smallest], [*overrides, f"placement.rollout_gpus={gpus}"]))

    return check


@pytest.mark.parametrize(
    ("policy", "gpus", "problem"),
    [
        ("Qwen3-VL-8B-Instruct", 8, ""),
        ("Qwen2.5-VL-3B-Instruct", 4, ""),  # more than its 2 heads of keys and values, which are copied
        (SEVEN, 8, "28 attention heads cannot be cut over 8 GPUs; what can be is 1, 2, 4"),
        (
            "Qwen3-VL-4B-Instruct",
            3,
            "32 attention heads, 8 heads of keys and values, an MLP of 9728, a vocabulary of 151936",
        ),
    ],
)
def test_what_does_not_come_out_even_is_named_with_the_numbers_that_do(check, policy, gpus, problem):
    (finding,) = check(policy, gpus)
    assert finding.level is (Level.FAILED if problem else Level.OK)
    assert problem in finding.detail


def test_engines_on_one_gpu_and_unknown_policies_are_not_looked_at(check):
    assert check(SEVEN, 1) == check("mine", 2) == []
