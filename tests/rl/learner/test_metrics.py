"""Numbers of a step: what is added up in which precision, when it is fetched, and that ranks agree."""

import math

import pytest
import torch
import torch.distributed as dist

from rl.learner import metrics
from rl.learner.metrics import Tally

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_rank(tmp_path):
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_sums_means_and_peaks_by_their_names():
    tally = Tally()
    for value in (1.5, torch.tensor(2.0), torch.tensor(3)):
        tally.sum("tokens", value)
        tally.mean("entropy", value, torch.tensor(2))
        tally.peak("gap", value)
    tally.mean("nothing counted", torch.tensor(0.0), 0)
    tally.peak("no value", -math.inf)
    assert tally.reduced(CPU) == {"tokens": 6.5, "entropy": 6.5 / 6, "gap": 3.0}


def test_float32_numbers_are_added_in_64_bits_in_the_order_they_came():
    values = torch.rand(500, generator=torch.Generator().manual_seed(1)) * 10.0 ** torch.arange(500).remainder(9)
    tally, expected = Tally(), 0.0
    for index, value in enumerate(values):
        tally.sum("sum", value if index % 3 else float(value))
        expected += float(value)
    assert tally.reduced(CPU) == {"sum": expected}
    assert float(values.sum()) != expected  # or this proved nothing


@pytest.mark.parametrize("values", [(1.0, math.nan, 2.0), (math.nan, 1.0), (1.0, math.nan)])
def test_a_nan_is_the_largest(values):
    tally = Tally()
    for value in values:
        tally.peak("gap", torch.tensor(value))
    assert math.isnan(tally.reduced(CPU)["gap"])


def test_a_number_is_fetched_once_with_all_others_and_holds_no_graph(monkeypatch):
    def refuse(*_):
        raise AssertionError("fetched before all were there")

    weight, tally, stacks = torch.ones(1000, requires_grad=True), Tally(), []
    with monkeypatch.context() as patched:
        for name in ("__float__", "item", "tolist"):
            patched.setattr(torch.Tensor, name, refuse)
        for _ in range(3):
            tally.mean("loss", (weight * 2).sum(), weight.numel())
            tally.sum("clipped", (weight > 0).sum())
            tally.peak("gap", weight.max())
    assert not any(number.requires_grad for numbers in (*tally._added.values(), *tally._peaks.values())
                   for number in numbers if isinstance(number, torch.Tensor))  # fmt: skip
    stack = torch.stack
    monkeypatch.setattr(metrics.torch, "stack", lambda tensors: stacks.append(len(tensors)) or stack(tensors))
    assert tally.reduced(CPU) == {"loss": 2.0, "clipped": 3000.0, "gap": 1.0}
    assert sorted(stacks) == [3, 6]  # by type: counts, float32
