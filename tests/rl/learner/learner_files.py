"""The files of learner ranks, as small as they come."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from rl.learner.rank_files import Fragment, Layout, metadata


def save_learner(folder: Path, ranks: int = 1, described: bool = True) -> None:
    """A learner's state of two weights, at ZeRO 1."""
    for rank in range(ranks):
        piece = Fragment("w", rank * 2 // ranks, 2 // ranks, "group_0", 0)
        said = metadata(Layout(1, ranks, rank), 5, {"w": (2,)}, [piece])
        kept = {"group_0.master": np.zeros(2 // ranks, np.float32)}
        shown = {key: value for key, value in said.items() if described or key in ("layout", "steps")}
        save_file(kept, folder / f"rank_{rank}.safetensors", metadata=shown)
