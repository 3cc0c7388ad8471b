"""Batch-invariant matrix products: a row is the same to the last bit whatever rows are computed with it.

Matrix libraries choose another kernel, and with it another order of additions, for few rows and for the rows left over
from a block. So rows are padded: to a multiple of 64, or, should that not be enough, into products of exactly 64 rows.
Whether it is enough is a property of library and processor. `rows_vary` measures it; docs/resume.md says what holds
where, docs/decisions/0022-row-padding.md why 64.

Legend: N rows · D values of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

PREFIXES = (1, 2, 7, 8, 9, 16, 23, 32, 40, 63, 64, 65, 104, 256, 511)  # numbers of rows that are tried
MAX_ROWS = 600  # of a probe
SMALL_WEIGHT = 2**19  # values; larger weights are probed with fewer rows, or an engine's start would take seconds
FEW_ROWS = 160
WINDOWS = 10  # random runs of rows, at any place


@dataclass(frozen=True, slots=True)
class RowPadding:
    """How many rows a product has."""

    rows: int
    fixed: bool = False  # one product for every `rows` rows, rather than one for all

    def __str__(self) -> str:
        return f"blocks of {self.rows} rows" if self.fixed else f"multiples of {self.rows} rows"


PADDINGS = (RowPadding(64), RowPadding(64, fixed=True))  # tried in this order when an engine starts


class BatchInvariantLinear:
    """`torch.nn.functional.linear` with padded rows. All layers of a model share one, so that `padding` is theirs."""

    def __init__(self, padding: RowPadding) -> None:
        self.padding = padding

    def __call__(self, x_ND: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x @ weight.T + bias, whatever the leading dimensions of `x_ND`."""
        rows_ND, padding = x_ND.reshape(-1, x_ND.shape[-1]), self.padding
        missing = -len(rows_ND) % padding.rows
        if not missing and not padding.fixed:
            return linear(x_ND, weight, bias)
        padded_ND = pad(rows_ND, (0, 0, 0, missing)) if missing else rows_ND
        if padding.fixed and len(padded_ND) > padding.rows:
            product = torch.cat([linear(block, weight, bias) for block in padded_ND.split(padding.rows)])
        else:
            product = linear(padded_ND, weight, bias)
        return product[: len(rows_ND)].reshape(*x_ND.shape[:-1], len(weight))


def linear_varies(product: Callable[..., Tensor], weight: Tensor) -> bool:
    """Whether a row of `product(rows, weight, bias)`, with a bias or without, depends on the rows beside it."""
    random = torch.Generator().manual_seed(0)
    rows = MAX_ROWS if weight.numel() <= SMALL_WEIGHT else FEW_ROWS
    rows_ND = torch.randn(rows, weight.shape[1], generator=random).to(weight)
    biases = (None, torch.randn(len(weight), generator=random).to(weight))
    return any(rows_vary(lambda x_ND, bias=bias: product(x_ND, weight, bias), rows_ND) for bias in biases)


def rows_vary(function: Callable[..., Tensor], *inputs_N: Tensor) -> bool:
    """Whether a row of a function's result depends on which rows are computed with it, and at which place.

    Compared with all rows at once, to the last bit: the first few, random ones alone, random runs that start anywhere
    (so a row takes every place in a block, and memory every alignment), and all in another order.

    Args:
        inputs_N: the function's arguments; each has a row for each row of the result.
    """
    whole_N = function(*inputs_N)
    return not all(
        torch.equal(function(*(values_N[chosen] for values_N in inputs_N)), whole_N[chosen])
        for chosen in _choices(len(inputs_N[0]))
    )


def _choices(total: int) -> Iterator[slice | Tensor]:
    """Which of `total` rows are computed together; the same for every probe."""
    random = torch.Generator().manual_seed(1)

    def draw(below: int) -> int:
        return int(torch.randint(below, (), generator=random))

    for count in PREFIXES:
        yield slice(0, min(count, total))
    for number in range(WINDOWS):
        first = draw(total)
        yield slice(first, first + 1)
        count = 1 + draw(min(total, 130 if number % 2 else total))
        first = draw(total - count + 1)
        yield slice(first, first + count)
    for number in range(2, min(6, total // 64 + 1)):  # whole blocks of 64 are not copied: their memory starts anywhere
        first = draw(total - 64 * (number - 1) + 1)
        yield slice(first, first + 64 * (number - 1))
    yield torch.randperm(total, generator=random)
