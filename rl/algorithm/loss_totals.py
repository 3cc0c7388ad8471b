"""The denominators of a step's loss. Free of torch: whoever deals out samples counts them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LossTotals:
    """Denominators of a whole global batch: add those of all ranks, and of all micro-batches of one optimizer step."""

    num_sequences: int  # with at least one token learned from
    num_tokens: int  # learned from

    def __add__(self, other: LossTotals) -> LossTotals:
        return LossTotals(self.num_sequences + other.num_sequences, self.num_tokens + other.num_tokens)
