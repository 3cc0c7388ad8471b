"""Products whose rows depend on nothing but themselves, and a probe that notices where they do."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl.policy import batch_invariant
from rl.policy.batch_invariant import batch_invariant_linear, varying_shapes

WEIGHT = torch.randn(96, 64, generator=torch.Generator().manual_seed(1))
ROWS = torch.randn(70, 64, generator=torch.Generator().manual_seed(2))


@given(st.integers(0, 69), st.integers(1, 70))
def test_a_row_is_the_same_alone_and_in_any_batch(first, count):
    alone = batch_invariant_linear(ROWS[first : first + 1], WEIGHT)
    assert torch.equal(batch_invariant_linear(ROWS[first : first + count], WEIGHT)[0], alone[0])


@pytest.mark.parametrize("shape", [(64,), (3, 64), (8, 64), (2, 5, 64), (0, 64)])
def test_it_is_a_linear_layer_whatever_the_shape(shape):
    x, bias = torch.randn(shape), torch.randn(96)
    product = batch_invariant_linear(x, WEIGHT, bias)
    assert product.shape == (*shape[:-1], 96)
    assert torch.allclose(product, x @ WEIGHT.T + bias, atol=1e-4)


def test_the_probe_finds_a_library_whose_rows_depend_on_their_number(monkeypatch):
    assert varying_shapes([WEIGHT, WEIGHT + 1, torch.ones(8, 32)]) == []

    def in_blocks_of_sixteen(x, weight, bias=None):  # what is left over is added up in another order
        whole = len(x) // 16 * 16
        rest = (x[whole:, None, :].flip(-1) * weight.flip(-1)).sum(-1)
        return torch.cat([torch.nn.functional.linear(x[:whole], weight, bias), rest])

    monkeypatch.setattr(batch_invariant, "linear", in_blocks_of_sixteen)
    assert varying_shapes([WEIGHT, torch.ones(8, 32)]) == [(96, 64), (8, 32)]
