"""Rates of an update, and the peaks they are shares of."""

import pytest

from rl.algorithm.packing import Sharing, alone
from rl.learner.throughput import peak_tflops, throughput, workload
from rl.policy.flops import VideoShape, Workload
from rl.trajectory import Frames, TrainingSample


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.0),
        ("NVIDIA H200", 989.0),
        ("NVIDIA H20", 148.0),
        ("NVIDIA GH200 480GB", 989.0),
        ("NVIDIA B200", 2250.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A100-PCIE-40GB", 312.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA GeForce RTX 4090", 165.0),
        ("Tesla V100-SXM2-16GB", None),
        ("NVIDIA A1000", None),
    ],
)
def test_a_gpu_is_found_by_the_name_its_driver_gives_it(name, peak):
    assert peak_tflops(name) == peak


NUMBERS = {"update/tokens": 6000.0, "update/seconds": 2.0, "update/flops": 4e12}


def test_rates_are_over_all_ranks_and_of_each():
    assert throughput(NUMBERS, ranks=2, peak=None) == {
        "update/tokens_per_s": 3000.0,
        "update/tokens_per_s_per_rank": 1500.0,
    }


def test_mfu_is_the_share_of_what_all_gpus_could_do():
    assert throughput(NUMBERS, ranks=2, peak=10.0)["update/mfu"] == pytest.approx(4e12 / (2 * 2 * 10e12))


def test_what_siblings_share_is_computed_once():
    def frames(digest, scenes):
        return Frames(None, (0.0,) * sum(scenes), scenes, 56, 84, digest)

    def sample(length, *videos):
        ids = (1,) * length
        mask = (False,) * (length - 2) + (True, True)
        return TrainingSample(ids, ids, ids, (0.0,) * length, (0.0,) * length, mask, ids, videos)

    opening = frames("v0", (2, 2))
    samples = [sample(5, opening, frames("v1", (1, 3))), sample(4, opening)]
    seen = (VideoShape((2, 2), 56, 84), VideoShape((1, 3), 56, 84))
    assert workload(samples, alone(samples)) == Workload(9, 25 + 16, 4, seen)
    # three tokens in common: 3 + 2 + 1 are computed, and each branch attends to them and to itself
    together = Sharing((0, 1), 3, 1, (2, 1))
    assert workload(samples, [together]) == Workload(6, 9 + 2 * (3 + 2) + 1 * (3 + 1), 4, seen)
