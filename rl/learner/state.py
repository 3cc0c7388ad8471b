"""What a learner rank must remember, as one safetensors file: nothing in it can run code when it is read.

A rank owns a partition of the float32 master weights (everything at ZeRO 0, a share of it at ZeRO 1-3) with AdamW's
state of the same shape. Together with the number of optimizer steps, from which the learning rate follows, and the
random state, that is all: on as many ranks and at the same stage a run continues with the same numbers, bit for bit.
Other ranks or another stage take the same masters and moments, put together anew (rl.learner.partition). The
model's own weights follow from the masters. DeepSpeed's own checkpoints are pickles; these are not.

Memory: files are mapped, never read whole. What reading adds to a rank is the AdamW state it makes room for anyway, and
pages of the files, which the system takes back when it needs them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rl.checkpoint.snapshot import CapturedState
from rl.learner.masters import located_fragments, masters, publish_masters, trained_shapes
from rl.learner.partition import Stretch, locate_fragments, require_described, require_same_parameters, stretches
from rl.learner.rank_files import (
    RNG,
    STEP,
    Fragment,
    Layout,
    LearnerStateError,
    RankFile,
    metadata,
    read_rank_files,
)
from rl.learner.settings import uses_cuda

APART = "cannot share a partition; resume with the learner.zero_stage it was written with"

Reader = Callable[[RankFile, str], Tensor]  # a tensor of a file, mapped


def capture_state(engine: Any, optimizer: torch.optim.Optimizer, layout: Layout, steps: int) -> CapturedState:
    """Copy this rank's state.

    Args:
        engine: the DeepSpeed engine.
        optimizer: the torch optimizer inside it.
        steps: optimizer steps taken.
    Raises:
        LearnerStateError: the masters are not in memory (DeepSpeed swaps them to a disk).
    """
    tensors = {f"{RNG}.{name}": state for name, state in _random_states().items()}
    tensors |= optimizer_tensors(engine, optimizer, layout)
    copied = {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    described = metadata(layout, steps, trained_shapes(engine), located_fragments(engine, layout))
    return CapturedState(layout.filename, copied, described)


def optimizer_tensors(engine: Any, optimizer: torch.optim.Optimizer, layout: Layout) -> dict[str, Tensor]:
    """This rank's master weights and AdamW's state of each, by name; the tensors themselves, not copies."""
    tensors = {}
    for name, master in masters(engine, layout.zero_stage).items():
        tensors[f"{name}.master"] = master.detach()
        tensors |= {f"{name}.{key}": value.detach() for key, value in optimizer.state.get(master, {}).items()}
    return tensors


def load_state(folder: Path, engine: Any, optimizer: torch.optim.Optimizer, layout: Layout) -> int:
    """Read the state back; collective, since the model's weights are rebuilt from all ranks' masters.

    In the layout it was written from this rank reads its own file, its random state included. In any other it takes the
    stretches it needs from wherever they lie; what the ranks drew from their random states cannot be divided anew, so
    each is seeded with what rank 0's was and its own number.

    Returns:
        Optimizer steps taken.
    Raises:
        LearnerStateError: files are missing or damaged, or they are of another policy.
    """
    files = read_rank_files(folder)
    require_described(files, layout)
    require_same_parameters(files, trained_shapes(engine))
    mine, targets = located_fragments(engine, layout), masters(engine, layout.zero_stage)
    unchanged = _as_written(files, layout, mine)
    cut = _as_it_lies(files[layout.rank], targets) if unchanged else _put_together(files, layout.rank, targets, mine)
    try:
        with _reading() as read:
            for name, master in targets.items():
                _fill(master, cut[name], optimizer, read)
            if unchanged:
                _restore_random_states(files[layout.rank], read)
            else:
                _seed_anew(files[0], layout.rank, read)
    except (OSError, SafetensorError) as error:
        raise LearnerStateError(f"{folder}: not readable: {error}") from error
    publish_masters(engine, layout.zero_stage)
    return files[0].steps


def _as_written(files: Sequence[RankFile], layout: Layout, mine: Sequence[Fragment]) -> bool:
    """Whether this rank's file is cut the way this rank is. Stage and number of ranks do not say all: DeepSpeed's own
    settings change the order of parameters and the number of groups."""
    saved = files[0].layout
    if (saved.zero_stage, saved.world_size) != (layout.zero_stage, layout.world_size):
        return False
    return files[0].parameters is None or set(files[layout.rank].fragments) == set(mine)


def _as_it_lies(file: RankFile, targets: Mapping[str, Tensor]) -> dict[str, list[Stretch]]:
    """Every master from the one of its name, padding included."""
    for name, master in targets.items():
        needed = tuple(master.shape)
        for key in file.kept.get(name, ["master"]):
            found, expected = file.tensors.get(f"{name}.{key}", "nothing"), () if key == STEP else needed
            if found != expected:
                raise LearnerStateError(
                    f"{file.path}: {name}.{key}: {found} saved, {expected} needed: another policy's state"
                )
    return {name: [Stretch(file, name, 0, 0, master.numel())] for name, master in targets.items()}


def _put_together(
    files: Sequence[RankFile], rank: int, targets: Mapping[str, Tensor], mine: Sequence[Fragment]
) -> dict[str, list[Stretch]]:
    """Every master from the stretches of its parameters."""
    located = locate_fragments(files, rank)
    cut: dict[str, list[Stretch]] = {name: [] for name in targets}
    for fragment in mine:
        cut[fragment.master] += stretches(fragment, located)
    return cut


@torch.no_grad()
def _fill(master: Tensor, cut: Sequence[Stretch], optimizer: torch.optim.Optimizer, read: Reader) -> None:
    """Copy stretches into a master and its AdamW state. What no stretch reaches is padding: zero in the state."""
    state, keys = optimizer.state[master], _common_keys(cut)
    for key in state.keys() - keys:
        del state[key]
    if STEP in keys:
        state[STEP] = _common_step(cut, read).to(_step_device(optimizer, master))
    for key in keys - {STEP}:
        target = master.data if key == "master" else _made_room(state, key, master)
        for stretch in cut:
            name = f"{stretch.master}.{key}"
            source = read(stretch.source, name)
            if source.dtype != target.dtype:
                raise LearnerStateError(f"{stretch.source.path}: {name} is {source.dtype}, {target.dtype} is needed")
            part = source.view(-1).narrow(0, stretch.source_offset, stretch.numel)
            target.view(-1).narrow(0, stretch.target_offset, stretch.numel).copy_(part)


def _made_room(state: dict[str, Tensor], key: str, master: Tensor) -> Tensor:
    if key in state:
        return state[key].zero_()
    state[key] = torch.zeros_like(master, requires_grad=False)
    return state[key]


def _common_keys(cut: Sequence[Stretch]) -> set[str]:
    """What is kept of all of them: with AdamW's state, or, before the first step, without."""
    if not cut:
        return set()
    keys = [stretch.source.kept[stretch.master] for stretch in cut]
    for stretch, other in zip(cut, keys, strict=True):
        if other != keys[0]:
            raise LearnerStateError(
                f"{stretch.source.path}: of {stretch.master} it has {other}, of {cut[0].master} {keys[0]}: parameters "
                f"that have learned and ones that have not {APART}"
            )
    return set(keys[0])


def _common_step(cut: Sequence[Stretch], read: Reader) -> Tensor:
    """AdamW counts steps per master; those that come together must have counted the same."""
    steps = [read(stretch.source, f"{stretch.master}.{STEP}") for stretch in cut]
    for stretch, step in zip(cut, steps, strict=True):
        if step != steps[0]:
            raise LearnerStateError(
                f"{stretch.source.path}: {stretch.master} has taken {step.item():g} steps of AdamW, {cut[0].master} "
                f"{steps[0].item():g}: they {APART}"
            )
    return steps[0].clone()


def _step_device(optimizer: torch.optim.Optimizer, master: Tensor) -> torch.device:
    """Where AdamW counts the steps of a master: on the CPU, but for the fused one, beside it."""
    return master.device if optimizer.defaults.get("fused") else torch.device("cpu")


@contextmanager
def _reading() -> Iterator[Reader]:
    """Tensors of files by name, mapped: what is not touched is not read."""
    with ExitStack() as stack:
        opened = cache(lambda path: stack.enter_context(safe_open(path, framework="pt")))
        yield lambda file, name: opened(file.path).get_tensor(name)


def _random_states() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state()} if uses_cuda() else {})


def _restore_random_states(file: RankFile, read: Reader) -> None:
    try:
        torch.set_rng_state(read(file, f"{RNG}.cpu"))
        if f"{RNG}.cuda" in file.tensors and uses_cuda():
            torch.cuda.set_rng_state(read(file, f"{RNG}.cuda"))
    except (RuntimeError, TypeError) as error:
        raise LearnerStateError(f"{file.path}: not a random state: {error}") from error


def _seed_anew(first: RankFile, rank: int, read: Reader) -> None:
    digest = hashlib.sha256(read(first, f"{RNG}.cpu").numpy().tobytes() + str(rank).encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
