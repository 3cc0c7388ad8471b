"""sha256 over sequences of parts and of integers. Free of torch: also read where nothing is computed with it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

Part = bytes | str


def sha256_of(parts: Iterable[Part]) -> str:
    """sha256, in hexadecimal, over a sequence of parts; where one part ends and the next begins counts."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def id_bytes(values: Sequence[int]) -> bytes:
    """Integers as little-endian 8-byte words."""
    return np.asarray(values, dtype="<i8").tobytes()
