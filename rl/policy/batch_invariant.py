"""Batch-invariant matrix products: a row is the same to the last bit whatever rows are computed with it.

Matrix libraries choose another order of additions for few rows, and for rows left over from a block of four or eight: a
sequence decoded alone gets other last bits than in a batch. Here the number of rows is always a multiple of eight.
Whether that is enough is a property of the library and the processor; `varying_shapes` finds out.

Legend: N rows · D values of a row.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

ROWS = 8
PROBES = (1, 7, 8, 9, 16, 23, 32, 40, 64, 104, 256, 511, 600)  # numbers of rows that are tried


def batch_invariant_linear(x_ND: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, each row by itself."""
    rows_ND = x_ND.reshape(-1, x_ND.shape[-1])
    missing = -len(rows_ND) % ROWS
    if not missing:
        return linear(x_ND, weight, bias)
    product = linear(pad(rows_ND, (0, 0, 0, missing)), weight, bias)[: len(rows_ND)]
    return product.reshape(*x_ND.shape[:-1], len(weight))


def varying_shapes(weights: Iterable[Tensor]) -> list[tuple[int, ...]]:
    """Shapes of weights for which a row of `batch_invariant_linear` depends on the number of rows here all the same."""
    random, found = torch.Generator().manual_seed(0), []
    for shape, weight in {tuple(weight.shape): weight for weight in weights}.items():
        rows_ND = torch.randn(max(PROBES), weight.shape[1], generator=random).to(weight)
        whole_ND = batch_invariant_linear(rows_ND, weight)
        if not all(torch.equal(batch_invariant_linear(rows_ND[:count], weight), whole_ND[:count]) for count in PROBES):
            found.append(shape)
    return found
