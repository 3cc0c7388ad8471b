"""Where DeepSpeed keeps a rank's float32 master weights, and which stretch of which parameter each of them holds.

The optimizer inside DeepSpeed updates masters; the model's own weights follow from them. At ZeRO 0 a master is a
parameter itself, at ZeRO 1-3 a flat partition of a group of parameters (rl.learner.partition shows how it is cut).
`engine` is the DeepSpeed engine throughout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from rl.learner.rank_files import Fragment, Layout, LearnerStateError


def masters(engine: Any, zero_stage: int) -> dict[str, Tensor]:
    """This rank's float32 master weights by name; the optimizer's state is keyed by these very tensors."""
    if zero_stage == 0:
        return dict(_trained(engine))
    zero = engine.optimizer
    flat = zero.fp32_partitioned_groups_flat if zero_stage == 3 else zero.single_partition_of_fp32_groups
    return {f"group_{index}": partition for index, partition in enumerate(flat)}


def trained_shapes(engine: Any) -> dict[str, tuple[int, ...]]:
    """All parameters that are trained, by name, as they are when whole."""
    return {name: tuple(getattr(parameter, "ds_shape", parameter.shape)) for name, parameter in _trained(engine)}


def located_fragments(engine: Any, layout: Layout) -> tuple[Fragment, ...]:
    """Where this rank's masters keep which stretch of which parameter.

    Raises:
        LearnerStateError: the masters are not in memory.
    """
    cut = {0: _whole, 1: _end_to_end, 2: _end_to_end, 3: _each_cut}[layout.zero_stage]
    names = {id(parameter): name for name, parameter in _trained(engine)}
    fragments = tuple(fragment for fragment in cut(engine, names, layout.rank) if fragment.numel > 0)
    sizes = {name: master.numel() for name, master in masters(engine, layout.zero_stage).items()}
    for f in fragments:
        if f.offset + f.numel > sizes[f.master]:
            raise LearnerStateError(
                f"the master weights of {f.parameter} are not in memory; state on NVMe can neither be saved nor loaded "
                "(learner.deepspeed_config: offload_optimizer.device)"
            )
    return fragments


@torch.no_grad()
def publish_masters(engine: Any, zero_stage: int) -> None:
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


def _whole(engine: Any, names: Mapping[int, str], rank: int) -> Iterator[Fragment]:
    """ZeRO 0: every rank has everything."""
    for name, parameter in _trained(engine):
        yield Fragment(name, 0, parameter.numel(), name, 0)


def _end_to_end(engine: Any, names: Mapping[int, str], rank: int) -> Iterator[Fragment]:
    """ZeRO 1 and 2: of the parameters of a group laid end to end a rank has one stretch.

    DeepSpeed may have changed their order (round_robin_gradients) and put padding between them.
    """
    zero = engine.optimizer
    for index, (group, offsets, size) in enumerate(
        zip(zero.round_robin_bit16_groups, zero.round_robin_bit16_offsets, zero.partition_size, strict=True)
    ):
        first = size * rank
        for parameter, offset in zip(group, offsets, strict=True):
            start, end = max(offset, first), min(offset + parameter.numel(), first + size)
            yield Fragment(names[id(parameter)], start - offset, max(0, end - start), f"group_{index}", start - first)


def _each_cut(engine: Any, names: Mapping[int, str], rank: int) -> Iterator[Fragment]:
    """ZeRO 3: of every parameter a rank has one of equal parts; the last part may end in padding."""
    for index, group in enumerate(engine.optimizer.fp16_groups):
        offset = 0
        for parameter in group:
            size = parameter.partition_numel()
            start = size * rank
            numel = max(0, min(size, parameter.ds_numel - start))
            yield Fragment(names[id(parameter)], start, numel, f"group_{index}", offset)
            offset += size


def _trained(engine: Any) -> list[tuple[str, Tensor]]:
    return [(name, parameter) for name, parameter in engine.module.named_parameters() if parameter.requires_grad]
