"""What a learner rank must remember, as one safetensors file: nothing in it can run code when it is read.

A rank owns a partition of the float32 master weights (everything at ZeRO 0, a share of it at ZeRO 1-3) with AdamW's
state of the same shape. Together with the number of optimizer steps, from which the learning rate follows, and the
random state, that is all: a run that goes on from here makes the same numbers, bit for bit, on as many ranks and at the
same stage. The model's own weights follow from the masters. DeepSpeed's own checkpoints are pickles; these are not.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rl.learner_settings import uses_cuda

FORMAT = 1


class LearnerStateError(RuntimeError):
    """A saved learner state does not fit this learner; the message says what differs."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the state is cut up; a state can only be read into the layout it was written from."""

    zero_stage: int
    world_size: int
    rank: int
    format: int = FORMAT

    @property
    def filename(self) -> str:
        """This rank's file."""
        return f"rank_{self.rank}.safetensors"


@dataclass(frozen=True, slots=True)
class CapturedState:
    """A copy of what a rank must remember, which training can no longer change."""

    layout: Layout
    tensors: dict[str, Tensor]  # on the CPU
    metadata: dict[str, str]

    def write(self, folder: Path) -> None:
        """One safetensors file in an existing folder; from any thread."""
        save_file(self.tensors, folder / self.layout.filename, metadata=self.metadata)


def capture_state(engine: Any, optimizer: torch.optim.Optimizer, layout: Layout, steps: int) -> CapturedState:
    """Copy this rank's state.

    Args:
        engine: the DeepSpeed engine.
        optimizer: the torch optimizer inside it.
        steps: optimizer steps taken.
    """
    tensors = {f"rng.{name}": state for name, state in _random_states().items()}
    tensors |= optimizer_tensors(engine, optimizer, layout)
    copied = {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    return CapturedState(layout, copied, {"layout": json.dumps(asdict(layout)), "steps": str(steps)})


def optimizer_tensors(engine: Any, optimizer: torch.optim.Optimizer, layout: Layout) -> dict[str, Tensor]:
    """This rank's master weights and AdamW's state of each, by name; the tensors themselves, not copies."""
    tensors = {}
    for name, master in masters(engine, layout.zero_stage).items():
        tensors[f"{name}.master"] = master.detach()
        tensors |= {f"{name}.{key}": value.detach() for key, value in optimizer.state.get(master, {}).items()}
    return tensors


def load_state(folder: Path, engine: Any, optimizer: torch.optim.Optimizer, layout: Layout) -> int:
    """Read this rank's state back; collective, since the model's weights are rebuilt from all ranks' masters.

    Returns:
        Optimizer steps taken.
    Raises:
        LearnerStateError: no such file, or it was written by another layout or policy.
    """
    path = folder / layout.filename
    try:
        with safe_open(path, framework="pt") as file:
            described = file.metadata() or {}
            _require_layout(path, described, layout)
            saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise LearnerStateError(f"{path}: not readable: {error}") from error
    for name, master in masters(engine, layout.zero_stage).items():
        _restore_master(path, name, master, optimizer, saved)
    _publish_masters(engine, layout.zero_stage)
    _restore_random_states({name: tensor for name, tensor in saved.items() if name.startswith("rng.")})
    return int(described["steps"])


def masters(engine: Any, zero_stage: int) -> dict[str, Tensor]:
    """This rank's float32 master weights by name; the optimizer's state is keyed by these very tensors."""
    if zero_stage == 0:
        return {name: p for name, p in engine.module.named_parameters() if p.requires_grad}
    zero = engine.optimizer
    flat = zero.fp32_partitioned_groups_flat if zero_stage == 3 else zero.single_partition_of_fp32_groups
    return {f"group_{index}": partition for index, partition in enumerate(flat)}


def _require_layout(path: Path, described: dict[str, str], layout: Layout) -> None:
    saved = json.loads(described.get("layout", "{}"))
    differing = {key: (saved.get(key), mine) for key, mine in asdict(layout).items() if saved.get(key) != mine}
    if differing:
        told = ", ".join(f"{key} {theirs} (now {mine})" for key, (theirs, mine) in differing.items())
        raise LearnerStateError(
            f"{path}: written with {told}; resume with the same learner.num_ranks and learner.zero_stage, or start "
            "from the exported policy (policy.path)"
        )


def _restore_master(
    path: Path, name: str, master: Tensor, optimizer: torch.optim.Optimizer, saved: dict[str, Tensor]
) -> None:
    mine = {key.removeprefix(f"{name}."): value for key, value in saved.items() if key.rpartition(".")[0] == name}
    if "master" not in mine or mine["master"].shape != master.shape:
        found = tuple(mine["master"].shape) if "master" in mine else "nothing"
        raise LearnerStateError(f"{path}: {name}: {found} saved, {tuple(master.shape)} needed: another policy's state")
    master.data.copy_(mine.pop("master"))
    state = optimizer.state[master]
    for key in [key for key in state if key not in mine]:
        del state[key]
    for key, value in mine.items():
        if key in state:
            state[key].copy_(value)
        else:
            state[key] = value.to(master.device) if value.ndim else value


@torch.no_grad()
def _publish_masters(engine: Any, zero_stage: int) -> None:
    """Bring the model's weights in line with the masters."""
    zero = engine.optimizer
    if zero_stage in (1, 2):
        zero.update_lp_params()
    elif zero_stage == 3:
        for index, (flat, master) in enumerate(
            zip(zero.fp16_partitioned_groups_flat, zero.fp32_partitioned_groups_flat, strict=True)
        ):
            flat.data.copy_(master.data)
            zero._unflatten_partitioned_parameters(index)
        if zero.persistent_parameters:  # small ones that every rank keeps whole
            zero.persistent_parameters[0].partition(zero.persistent_parameters)
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


def _random_states() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state()} if uses_cuda() else {})


def _restore_random_states(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["rng.cpu"])
    if "rng.cuda" in states and uses_cuda():
        torch.cuda.set_rng_state(states["rng.cuda"])
