"""The metadata of a rank's file: which layout wrote it, and where each parameter's stretches lie.

Headers are all that is read here, and torch is not needed. Metadata is data from outside: whatever it says, the answer
is a `LearnerStateError`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

FORMAT = 1  # files without fragments are older; they have the same tensors under the same names
MOST_DIMENSIONS = 16
RNG = "rng"  # what the names of random states begin with
STEP = "step"  # AdamW's count: one number per master; the rest of what is kept has the master's shape
START_OVER = "start a new run from the policy in that checkpoint (policy.path=…/policy name=…)"


class LearnerStateError(RuntimeError):
    """A saved learner state does not fit this learner; the message says what differs, and what to do."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the state is cut up."""

    zero_stage: int
    world_size: int
    rank: int
    format: int = FORMAT

    @property
    def filename(self) -> str:
        """This rank's file."""
        return f"rank_{self.rank}.safetensors"


@dataclass(frozen=True, slots=True)
class Fragment:
    """A stretch of a parameter, and where a rank keeps it. Counted in elements of flattened tensors."""

    parameter: str
    start: int  # in the parameter
    numel: int
    master: str  # the master weight it is part of; its AdamW state is cut the same way
    offset: int  # in the master

    @property
    def end(self) -> int:
        """One past the last element, in the parameter."""
        return self.start + self.numel


@dataclass(frozen=True)
class RankFile:
    """The metadata of a rank's file, and the shapes of its tensors."""

    path: Path
    layout: Layout
    steps: int  # optimizer steps taken
    tensors: Mapping[str, tuple[int, ...]]  # name -> shape
    parameters: Mapping[str, tuple[int, ...]] | None  # all that are trained, on every rank -> shape; None: it is older
    fragments: tuple[Fragment, ...] = ()  # this rank's

    @cached_property
    def kept(self) -> dict[str, list[str]]:
        """What is kept of each master: "master" itself and AdamW's state, in order."""
        keys: dict[str, list[str]] = {}
        for name in sorted(self.tensors):
            master, _, key = name.rpartition(".")
            keys.setdefault(master, []).append(key)
        return keys


def read_rank_files(folder: Path) -> list[RankFile]:
    """The files of all ranks, in order, each whole as far as its header tells, and all of one save.

    Raises:
        LearnerStateError: they are not.
    """
    first = read_rank_file(folder / Layout(0, 1, 0).filename)
    found, world_size = sorted(path.name for path in folder.glob("rank_*.safetensors")), first.layout.world_size
    if len(found) != world_size:
        raise LearnerStateError(
            f"{first.path}: written by {world_size} ranks, but {len(found)} files lie here ({some_names(found)}); "
            f"resume from a checkpoint that is whole (resume=PATH), or {START_OVER}"
        )
    files = [first, *(read_rank_file(folder / Layout(0, world_size, rank).filename) for rank in range(1, world_size))]
    for rank, file in enumerate(files):
        if file.layout.rank != rank:
            raise LearnerStateError(f"{file.path}: says it is of rank {file.layout.rank}; files were exchanged")
        for what in ("zero_stage", "world_size"):
            _require_same(first, file, what, getattr(first.layout, what), getattr(file.layout, what))
        _require_same(first, file, "steps", first.steps, file.steps)
        if file.parameters != first.parameters:
            raise LearnerStateError(f"{file.path}: other parameters than in {first.path.name}; not of one save")
    return files


def read_rank_file(path: Path) -> RankFile:
    """The metadata of one file, checked against the tensors it has.

    Raises:
        LearnerStateError: not there, not a safetensors file, or its metadata is not what we write.
    """
    if not path.is_file():
        raise LearnerStateError(
            f"{path}: there is no such file; resume from a checkpoint that is whole (resume=PATH), or {START_OVER}"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            stored = file.metadata() or {}
            tensors = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise LearnerStateError(f"{path}: not readable: {error}") from error
    try:
        return _parse_metadata(path, stored, tensors)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        cause = f"{type(error).__name__}: {error}"
        raise LearnerStateError(f"{path}: not the metadata of a learner state: {cause[:300]}") from error


def metadata(
    layout: Layout, steps: int, parameters: Mapping[str, tuple[int, ...]], fragments: Sequence[Fragment]
) -> dict[str, str]:
    """What `read_rank_file` reads."""
    return {
        "layout": json.dumps(asdict(layout)),
        "steps": str(steps),
        "parameters": json.dumps(parameters),
        "fragments": json.dumps([[f.parameter, f.start, f.numel, f.master, f.offset] for f in fragments]),
    }


def _parse_metadata(path: Path, stored: Mapping[str, str], tensors: Mapping[str, tuple[int, ...]]) -> RankFile:
    layout = _object(json.loads(stored["layout"]))
    if layout.get("format") != FORMAT:
        raise LearnerStateError(f"{path}: format {layout.get('format')!r}, this version reads {FORMAT}")
    cut = Layout(**{key: _count(layout[key], key) for key in ("zero_stage", "world_size", "rank")})
    if cut.zero_stage > 3 or not cut.rank < cut.world_size:
        raise ValueError(f"stage {cut.zero_stage}, rank {cut.rank} of {cut.world_size}")
    steps = _count(json.loads(stored["steps"]), "steps")
    if "fragments" not in stored:
        return RankFile(path, cut, steps, tensors, None)
    shapes = {name: _shape(shape) for name, shape in _object(json.loads(stored["parameters"])).items()}
    fragments = tuple(_fragment(row) for row in json.loads(stored["fragments"]))
    _require_inside(fragments, shapes, tensors)
    return RankFile(path, cut, steps, tensors, shapes, fragments)


def _require_inside(
    fragments: Sequence[Fragment], shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, tuple[int, ...]]
) -> None:
    """Fragments lie within their parameters and masters, and not on top of each other."""
    for f in fragments:
        if f.parameter not in shapes:
            raise ValueError(f"a fragment of {f.parameter!r:.80}, which is no parameter")
        if f.end > math.prod(shapes[f.parameter]):
            raise ValueError(
                f"a fragment ends at element {f.end:.6g} of {f.parameter}, beyond its {shapes[f.parameter]}"
            )
        shape = tensors.get(f"{f.master}.master")
        if shape is None or f.offset + f.numel > math.prod(shape):
            raise ValueError(f"a fragment of {f.parameter} lies beyond the master weights {f.master!r:.80} {shape}")
    lying = sorted(fragments, key=lambda f: (f.master, f.offset))
    for one, other in pairwise(lying):
        if one.master == other.master and one.offset + one.numel > other.offset:
            raise ValueError(f"fragments of {one.parameter} and {other.parameter} lie on top of each other")
    masters = {f.master: tensors[f"{f.master}.master"] for f in fragments}
    for name, shape in tensors.items():
        master, _, key = name.rpartition(".")
        if master in masters and shape != (() if key == STEP else masters[master]):
            raise ValueError(f"{key} of {master} is {shape}, its master is {masters[master]}")


def _fragment(row: Any) -> Fragment:
    parameter, start, numel, master, offset = row if isinstance(row, list) and len(row) == 5 else (None,) * 5
    if not isinstance(parameter, str) or not isinstance(master, str):
        raise ValueError(f"not a fragment: {row!r:.80}")
    fragment = Fragment(parameter, _count(start, "start"), _count(numel, "numel"), master, _count(offset, "offset"))
    if fragment.numel == 0:
        raise ValueError(f"an empty fragment of {parameter!r:.80}")
    return fragment


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > MOST_DIMENSIONS:
        raise ValueError(f"not a shape: {value!r:.80}")
    return tuple(_count(size, "a shape's size") for size in value)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"not an object: {value!r:.80}")
    return value


def _count(value: Any, name: str) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{name} is no count: {value!r:.80}")
    return value


def _require_same(first: RankFile, file: RankFile, what: str, expected: int, found: int) -> None:
    if expected != found:
        raise LearnerStateError(
            f"{file.path}: {what} {found}, {first.path.name} says {expected}; the files are not of one save: "
            "resume from another checkpoint (resume=PATH)"
        )


def some_names(names: Sequence[str]) -> str:
    """The first two, for a message."""
    return ", ".join(names[:2]) + (", …" if len(names) > 2 else "") if names else "none"
