"""Products whose rows depend on nothing but themselves, and a probe that notices where they do."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import linear

from benchmarks.batch_invariance import EMULATIONS, emulate
from rl.policy.batch_invariant import PADDINGS, BatchInvariantLinear, RowPadding, linear_varies, rows_vary

WEIGHT = torch.randn(96, 64, generator=torch.Generator().manual_seed(1))
ROWS = torch.randn(200, 64, generator=torch.Generator().manual_seed(2))
EMULATED = ("MKL_CBWR=COMPATIBLE", "ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41")
AS_INTEL = {  # padding -> whether the probe must find it wanting; measured, see docs/resume.md
    "as Intel, MKL_ENABLE_INSTRUCTIONS=AVX2": {"1", "8", "16", "32", "blocks of 32"},
    "as Intel, MKL_ENABLE_INSTRUCTIONS=SSE4_2": {"1", "4"},
}

every_padding = pytest.mark.parametrize(
    "product", [BatchInvariantLinear(padding) for padding in PADDINGS], ids=[str(padding) for padding in PADDINGS]
)


@every_padding
@given(first=st.integers(0, 199), count=st.integers(1, 200))
def test_a_row_is_the_same_alone_and_in_any_batch(product, first, count):
    alone = product(ROWS[first : first + 1], WEIGHT)
    assert torch.equal(product(ROWS[first : first + count], WEIGHT)[0], alone[0])


@every_padding
@pytest.mark.parametrize("shape", [(64,), (3, 64), (64, 64), (128, 64), (2, 70, 64), (0, 64)])
def test_it_is_a_linear_layer_whatever_the_shape(product, shape):
    x, bias = torch.randn(shape), torch.randn(96)
    result = product(x, WEIGHT, bias)
    assert result.shape == (*shape[:-1], 96)
    assert torch.allclose(result, x @ WEIGHT.T + bias, atol=1e-4)


def test_a_padding_names_itself():
    assert [str(padding) for padding in PADDINGS] == ["multiples of 64 rows", "blocks of 64 rows"]


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
def test_the_paddings_that_engines_try_hold_here(padding):
    assert not linear_varies(BatchInvariantLinear(padding), WEIGHT)


def reversed_sum(x, weight):
    """The same product with another order of additions."""
    return (x[:, None, :].flip(-1) * weight.flip(-1)).sum(-1)


def few_rows(x, weight, bias=None):
    return linear(x, weight, bias) if len(x) >= 16 else reversed_sum(x, weight)


def rows_left_over(x, weight, bias=None):
    whole = len(x) // 16 * 16
    return torch.cat([linear(x[:whole], weight, bias), reversed_sum(x[whole:], weight)])


def last_place_in_a_block(x, weight, bias=None):
    """Prefixes are equal: only the place in the block matters, as with MKL's AVX2 kernels."""
    product = linear(x, weight, bias)
    product[63::64] = reversed_sum(x[63::64], weight)
    return product


def with_a_bias_only(x, weight, bias=None):
    return linear(x, weight) if bias is None else few_rows(x, weight) + bias


def unaligned_memory(x, weight, bias=None):
    return linear(x, weight, bias) if x.data_ptr() % 64 == 0 else reversed_sum(x, weight)


@pytest.mark.parametrize("library", [few_rows, rows_left_over, last_place_in_a_block, with_a_bias_only])
def test_the_probe_finds_what_a_row_depends_on(library):
    assert linear_varies(library, WEIGHT)


def test_the_probe_finds_what_depends_on_alignment():
    assert linear_varies(unaligned_memory, torch.randn(8, 37))


def test_the_probe_passes_a_library_that_computes_row_by_row():
    assert not linear_varies(lambda x, w, bias=None: torch.cat([linear(row[None], w, bias) for row in x]), WEIGHT)
    assert not linear_varies(BatchInvariantLinear(RowPadding(1, fixed=True)), torch.ones(8, 32))


def test_functions_of_several_inputs_are_probed_row_by_row():
    assert not rows_vary(torch.add, ROWS, 2 * ROWS)
    assert rows_vary(lambda x, y: x + y.mean(), ROWS, ROWS)


@pytest.mark.thorough
@pytest.mark.parametrize("name", [*EMULATED, *AS_INTEL])
def test_on_other_processors_64_rows_hold_and_the_probe_finds_what_does_not(name, tmp_path):
    found = emulate(next(emulation for emulation in EMULATIONS if str(emulation) == name), tmp_path)
    if found is None:
        pytest.skip("no C compiler: MKL cannot be made to take this processor for one of Intel's")
    varying = {kernel for kernel, cell in found.items() if cell != "holds"}
    assert varying.isdisjoint({"64", "blocks of 64", "RMS norm", "layer norm", "SiLU", "log-softmax"})
    assert varying >= AS_INTEL.get(name, {"1"})
