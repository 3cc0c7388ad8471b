"""How a learner's state is cut up over the files of its ranks, and how one cut becomes another.

Ten elements of one parameter on two ranks:

    ZeRO 0       rank 0  |0123456789|      rank 1  |0123456789|      every rank has all of it
    ZeRO 1, 2    rank 0  ...|0123456|      rank 1  |789|...          a group's parameters end to end, one cut per rank
    ZeRO 3       rank 0  ...|01234|...     rank 1  ...|56789|...     every parameter is cut, with padding at its end

The metadata of a rank's file says where each fragment lies (rl.learner.rank_files), so that what one layout wrote any
other can read: copies of stretches, no arithmetic. Torch is not needed: the driver asks `require_loadable` before it
starts anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rl.learner.rank_files import (
    START_OVER,
    Fragment,
    Layout,
    LearnerStateError,
    RankFile,
    read_rank_files,
    some_names,
)

Located = Mapping[str, list[tuple[RankFile, Fragment]]]  # parameter -> which file has which stretch of it, in order


@dataclass(frozen=True, slots=True)
class Stretch:
    """Copy `numel` elements of everything kept of one master to another."""

    source: RankFile
    master: str  # in the source
    source_offset: int
    target_offset: int
    numel: int


def require_loadable(folder: Path, zero_stage: int, world_size: int) -> None:
    """Refuse a state that ranks of this layout could not continue from. Looks at headers only; starts nothing.

    Raises:
        LearnerStateError: files are missing, too many, damaged or of different saves, or they are older than the
            description that another stage or another number of ranks needs.
    """
    files = read_rank_files(folder)
    require_described(files, Layout(zero_stage, world_size, rank=0))
    if files[0].parameters is not None:
        for reader in range(len(files) if files[0].layout.zero_stage == 0 else 1):
            locate_fragments(files, reader)


def require_described(files: Sequence[RankFile], layout: Layout) -> None:
    """A state that does not say where its fragments lie is read only where nothing has changed.

    Raises:
        LearnerStateError: something has.
    """
    saved = files[0].layout
    differing = {
        "learner.zero_stage": (saved.zero_stage, layout.zero_stage),
        "learner.num_ranks": (saved.world_size, layout.world_size),
    }
    changed = [f"{key}={old} (now {new})" for key, (old, new) in differing.items() if old != new]
    if changed and files[0].parameters is None:
        raise LearnerStateError(
            f"{files[0].path}: written with {', '.join(changed)} and without a description from which another layout "
            f"could read it; resume with the values it was written with, or {START_OVER}"
        )


def require_same_parameters(files: Sequence[RankFile], trained: Mapping[str, tuple[int, ...]]) -> None:
    """The state is of a policy that trains these parameters, by name and shape.

    Raises:
        LearnerStateError: it is not.
    """
    saved, path = files[0].parameters, files[0].path
    if saved is None or saved == trained:
        return
    more, less = sorted(saved.keys() - trained.keys()), sorted(trained.keys() - saved.keys())
    if more or less:
        raise LearnerStateError(
            f"{path}: {len(more)} parameters in it are not trained here ({some_names(more)}), {len(less)} trained here "
            f"are not in it ({some_names(less)}): another policy, or learner.freeze_vision or policy.lora has changed; "
            f"resume with the settings it was written with, or {START_OVER}"
        )
    name = next(name for name in sorted(saved) if saved[name] != trained[name])
    raise LearnerStateError(
        f"{path}: {name} is {saved[name]} in it, {trained[name]} here: another policy; resume with the policy it was "
        f"written with, or {START_OVER}"
    )


def locate_fragments(files: Sequence[RankFile], reader: int = 0) -> dict[str, list[tuple[RankFile, Fragment]]]:
    """Every parameter's stretches in order, each element once.

    Args:
        reader: rank that asks; at stage 0, where every file has everything, ranks read different files.
    Raises:
        LearnerStateError: elements are missing, or are there twice.
    """
    if files[0].layout.zero_stage == 0:
        files = [files[reader % len(files)]]
    parameters = files[0].parameters or {}
    located: dict[str, list[tuple[RankFile, Fragment]]] = {name: [] for name in parameters}
    for file in files:
        for fragment in file.fragments:
            located[fragment.parameter].append((file, fragment))
    for name, shape in parameters.items():
        located[name].sort(key=lambda pair: pair[1].start)
        reached = 0
        for file, fragment in located[name]:
            if fragment.start != reached:
                raise LearnerStateError(
                    f"{file.path}: {name} goes on at element {fragment.start}, {reached} was expected: fragments of "
                    "different saves, or a damaged description"
                )
            reached = fragment.end
        if reached != math.prod(shape):
            raise LearnerStateError(
                f"{files[0].path.parent}: {reached} of {math.prod(shape)} elements of {name} are in the ranks' files"
            )
    return located


def stretches(wanted: Fragment, located: Located) -> Iterator[Stretch]:
    """Where the elements of a fragment come from, in order."""
    for source, fragment in located[wanted.parameter]:
        first, end = max(wanted.start, fragment.start), min(wanted.end, fragment.end)
        if first < end:
            source_offset = fragment.offset + first - fragment.start
            target_offset = wanted.offset + first - wanted.start
            yield Stretch(source, fragment.master, source_offset, target_offset, end - first)
