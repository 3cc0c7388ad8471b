"""Trained parameters in float32, put together from the files of a learner's ranks: without torch, ranks or a policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from rl.learner.partition import Stretch, locate_fragments, stretches
from rl.learner.rank_files import START_OVER, Fragment, LearnerStateError, read_rank_files


def whole_masters(folder: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, np.ndarray]]:
    """Master weights of the parameters whose name is wanted, one after the other.

    Args:
        folder: of a checkpoint, with the files of all ranks.
    Raises:
        LearnerStateError: files are missing or damaged, or older than the description of where parameters lie.
    """
    files = read_rank_files(folder)
    if files[0].parameters is None:
        raise LearnerStateError(f"{files[0].path}: does not say where its parameters lie; {START_OVER}")
    located = locate_fragments(files)
    with ExitStack() as stack:
        opened = cache(lambda path: stack.enter_context(safe_open(path, framework="numpy")))
        for name, shape in files[0].parameters.items():
            if not wanted(name):
                continue
            whole = np.empty(int(np.prod(shape)), np.float32)
            for part in stretches(Fragment(name, 0, whole.size, name, 0), located):
                read = _read(opened(part.source.path), part)
                whole[part.target_offset : part.target_offset + part.numel] = read
            yield name, whole.reshape(shape)


def _read(file: Any, part: Stretch) -> np.ndarray:
    """A stretch of a master; of a flat one, which is all parameters of a rank, nothing else is read."""
    name, place = f"{part.master}.master", slice(part.source_offset, part.source_offset + part.numel)
    master = file.get_slice(name)
    return master[place] if len(master.get_shape()) == 1 else file.get_tensor(name).reshape(-1)[place]
