"""Tuples of numbers that pickle as arrays: four bytes a token id, four or eight a log-prob, and shared ones once.

Everywhere else they are tuples. A pickled tuple of Python's own takes 3 to 9 bytes an entry and is read entry by entry.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import numpy as np


class PackedInts(tuple[int, ...]):
    """Integers that fit 32 bits: token ids, positions, versions."""

    __slots__ = ()

    @classmethod
    def of(cls, values: Iterable[int]) -> Self:
        """The values packed; what is packed already stays the same object, so that pickling a shared one shares it."""
        return values if isinstance(values, cls) else cls(values)

    def __reduce__(self) -> tuple[object, ...]:
        return _ints, (np.array(self, np.int32).tobytes(),)


class PackedFloats(tuple[float, ...]):
    """Floats, to the last bit: as float32 where all of them are, as an engine's log-probs are, else as float64."""

    __slots__ = ()

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """As PackedInts.of."""
        return values if isinstance(values, cls) else cls(values)

    def __reduce__(self) -> tuple[object, ...]:
        exact = np.array(self, np.float64)
        with np.errstate(over="ignore"):
            short = exact.astype(np.float32)
        kept = short if short.astype(np.float64).tobytes() == exact.tobytes() else exact
        return _floats, (kept.dtype.char, kept.tobytes())


def _ints(packed: bytes) -> PackedInts:
    return PackedInts(np.frombuffer(packed, np.int32).tolist())


def _floats(code: str, packed: bytes) -> PackedFloats:
    return PackedFloats(np.frombuffer(packed, code).tolist())
