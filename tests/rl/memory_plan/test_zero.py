"""What ZeRO keeps on a rank, in bytes per parameter: the arithmetic of its stages."""

import pytest

from rl.config.learner import LearnerConfig
from rl.learner.settings import deepspeed_settings
from rl.memory_plan.zero import Parameters, zero_memory

MANY = 10**9  # parameters, all trained
OFFLOAD = "zero_optimization: {offload_optimizer: {device: cpu}}\n"


def memory(stage, ranks, dtype="bfloat16", *, frozen=0, extra="", cuda=True):
    config = LearnerConfig(zero_stage=stage, num_ranks=ranks, deepspeed_config=extra)
    settings = deepspeed_settings(config, dtype, MANY, on_cuda=cuda)
    itemsize = {"bfloat16": 2, "float32": 4}[dtype]
    return zero_memory(Parameters(MANY, frozen, MANY // 10, MANY // 10), ranks, itemsize, settings, cuda=cuda)


@pytest.mark.parametrize(
    ("stage", "dtype", "weights", "masters_and_moments", "gradients"),
    [  # per trained parameter, of 4 ranks
        (0, "float32", 4, 8, 4),
        (1, "bfloat16", 2, 12 / 4, 2),
        (1, "float32", 4, 12 / 4, 4),
        (2, "bfloat16", 2, 12 / 4, 4 / 4),  # gradients add up in float32
        (2, "float32", 4, 12 / 4, 4 / 4),
        (3, "bfloat16", 2 / 4, 12 / 4, 4 / 4 + 2 * 0.5),  # and a bucket of half of them that stays
        (3, "float32", 4 / 4, 8 / 4, 4 / 4 + 4 * 0.5),  # the weights' parts are their own masters
    ],
)
def test_bytes_per_parameter(stage, dtype, weights, masters_and_moments, gradients):
    found = memory(stage, 4, dtype)
    kept = (found.weights, found.masters_and_moments, found.gradients)
    assert [each / MANY for each in kept] == pytest.approx([weights, masters_and_moments, gradients])


def test_what_is_frozen_has_weights_alone():
    bare, more = memory(2, 4), memory(2, 4, frozen=MANY)
    assert more.weights - bare.weights == 2 * MANY
    assert more.masters_and_moments == bare.masters_and_moments


def test_stage_3_gathers_up_to_deepspeeds_limit():
    assert memory(3, 8).gathered == 2 * MANY
    assert memory(3, 8, frozen=10 * MANY).gathered == pytest.approx(2 * 1.05 * MANY)


def test_offload_moves_masters_and_moments_to_the_host(tmp_path):
    extra = tmp_path / "offload.yaml"
    extra.write_text(OFFLOAD)
    on_gpu, on_host = memory(2, 4), memory(2, 4, extra=str(extra))
    assert (on_host.masters_and_moments, on_gpu.host) == (0, 0)
    assert on_host.host / MANY == pytest.approx((16 + 2 + 8) / 4)  # with gradients, weights to be sent, AdamW's own
    assert on_host.stepping <= on_gpu.stepping  # a fused AdamW needs no room of its own there


def test_adamw_takes_room_of_its_own_on_the_cpu_alone():
    assert memory(2, 1, cuda=False).stepping - memory(2, 1).stepping == 8 * MANY
