"""The policy inside a DeepSpeed engine: gradients, optimizer steps, whole weights. The door to deepspeed; no Ray.

DeepSpeed averages gradients over ranks, so every rank multiplies its loss by their number; the accumulation boundary is
set by hand, since micro-batches vary in number. With the denominators of `rl.algorithm.loss`, which are those of the
whole batch, any stage, any number of ranks and any micro-batch size then give the gradient of the whole batch.
"""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Callable, Container, Iterator, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum
from torch import Tensor, nn
from torch.profiler import record_function

from rl.config.learner import LearnerConfig
from rl.learner.loading import cut_up_for_inference, place_cut_up, place_whole, whole_shape
from rl.learner.settings import deepspeed_settings, inference_settings, steps_fused, uses_cuda
from rl.own_address import own_interface
from rl.policy.lora import NamedWeight, named_weights
from rl.weight_transfer.description import WeightTensor, dtype_name, filled

_GRADIENTS = (OffloadStateTypeEnum.lp_grads, OffloadStateTypeEnum.contiguous_grad_buffer)
GATHER_BYTES = 2**28  # ZeRO-3 weights made whole at a time


class StepOutcome(NamedTuple):
    """What became of one optimizer step."""

    applied: bool  # False: the gradient was not finite, nothing has changed
    grad_norm: float  # over all ranks, before clipping


class TrainingEngine:
    """A policy, its AdamW and the DeepSpeed engine around both. Every method is collective.

    engine = TrainingEngine(map_policy(folder, scenes), config, "float32", device, world_size=2)
    outcome = engine.step([lambda: loss_of(0), lambda: loss_of(1)], lr=1e-6)
    """

    def __init__(
        self, model: nn.Module, config: LearnerConfig, dtype: str, device: torch.device, world_size: int
    ) -> None:
        """Weight decay spares vectors: biases and the gains of norms.

        Args:
            model: whole, wherever and of whatever type it is; it is moved to `device` as `dtype`, and cut up at ZeRO 3.
        Raises:
            ConfigError: `learner.deepspeed_config` cannot be read.
        """
        self.zero_stage, self._world_size = config.zero_stage, world_size
        self._device, self._dtype = device, getattr(torch, dtype)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        options = config.optimizer
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": options.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self._settings = deepspeed_settings(config, dtype, sum(parameter.numel() for parameter in trained))
        fused = steps_fused(self._settings, device.type) or None  # None: torch chooses
        self.adamw = torch.optim.AdamW(groups, lr=options.lr, betas=tuple(options.betas), fused=fused)
        if config.zero_stage == 3:
            place_cut_up(model, device, self._dtype, self._settings)
        else:
            place_whole(model, device, self._dtype)
        self.deepspeed: Any = deepspeed.initialize(
            model=model, optimizer=self.adamw, config=self._settings, dist_init_required=False
        )[0]
        self._reference: Any = None

    @property
    def module(self) -> nn.Module:
        """The model itself; at ZeRO 3 its parameters are cut up."""
        return self.deepspeed.module

    def add_reference(self, model: nn.Module) -> Callable[..., Any]:
        """A model that is asked beside the trained one and never changes, on the same device; cut up at ZeRO 3."""
        model.requires_grad_(False).eval()
        if self.zero_stage < 3:
            place_whole(model, self._device, self._dtype)
            return model
        self._reference = cut_up_for_inference(model, self._device, self._dtype, inference_settings(self._settings))
        return self._reference

    def step(self, losses: Sequence[Callable[[], Tensor]], lr: float) -> StepOutcome:
        """Accumulate the gradients of all micro-batches, then take one optimizer step if they are finite.

        Args:
            losses: one per micro-batch, equally many on every rank; called one after the other, so that only one graph
                is in memory at a time.
        """
        for group in self.adamw.param_groups:
            group["lr"] = lr
        for index, loss in enumerate(losses):
            self.deepspeed.set_gradient_accumulation_boundary(index == len(losses) - 1)
            with record_function("learner/forward"):
                value = loss() * self._world_size
            with record_function("learner/backward"):
                self.deepspeed.backward(value)
        with record_function("learner/optimizer"):
            return self.apply()

    def apply(self) -> StepOutcome:
        """Clip the accumulated gradient and step."""
        if self.zero_stage == 0:  # DeepSpeed looks for NaN at stages 1-3 only
            grads = [p.grad for p in self.module.parameters() if p.grad is not None]
            norm = float(nn.utils.get_total_norm(grads))
            if not math.isfinite(norm):
                self.module.zero_grad(set_to_none=True)
                return StepOutcome(False, norm)
            self.deepspeed.step()
            return StepOutcome(True, norm)
        self.deepspeed.step()
        return StepOutcome(self.deepspeed.was_step_applied(), float(self.deepspeed.get_global_grad_norm()))

    def named_weights(
        self, *, trainable_only: bool = False, wanted: Container[str] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Whole parameters under their Hugging Face names. At ZeRO 3 every rank has to run through all of them.

        Args:
            wanted: names that this rank has a use for; the others are gathered and not given. None: all.
        """
        weights = self._weights(trainable_only)
        if self.zero_stage < 3:
            yield from ((one.name, one.value()) for one in weights if wanted is None or one.name in wanted)
            return
        for bucket in filled(weights, GATHER_BYTES, _whole_bytes):
            with deepspeed.zero.GatheredParameters([parameter for one in bucket for parameter in one.parameters]):
                whole = [(one.name, one.value().clone()) for one in bucket if wanted is None or one.name in wanted]
            yield from whole

    def described_weights(self, *, trainable_only: bool = False) -> list[WeightTensor]:
        """What `named_weights` gives, in the same order; nothing is gathered."""
        return [
            WeightTensor(one.name, dtype_name(one.parameter.dtype), tuple(whole_shape(one.parameter)))
            for one in self._weights(trainable_only)
        ]

    def whole_shapes(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Shape when whole, and type, of every parameter under its Hugging Face name."""
        return {one.name: (whole_shape(one.parameter), one.parameter.dtype) for one in self._weights()}

    def _weights(self, trainable_only: bool = False) -> list[NamedWeight]:
        return [one for one in named_weights(self.module) if one.trains or not trainable_only]

    def offload(self, *, states: bool) -> None:
        """Give memory back that no tensor lies in; with `states`, that of masters, moments and gradients, too.

        They move to main memory; the weights stay, and at ZeRO 0 they are the masters.

        At ZeRO 1 and 2 DeepSpeed moves the masters, for it keeps views of them. At ZeRO 3 it has no views, and moves
        those of its own Adam only. Moments are moved here: DeepSpeed would bring step counts back to the GPU as well.
        """
        if states and self.zero_stage > 0:
            kinds = (*_GRADIENTS, *((OffloadStateTypeEnum.hp_params,) if self.zero_stage < 3 else ()))
            self.deepspeed.offload_states(include=kinds, pin_memory=self._device.type == "cuda")
        if states:
            self._move_moments(_on_host)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def reload(self) -> None:
        """Bring back what `offload` has moved."""
        if self.zero_stage > 0:
            self.deepspeed.reload_states()
        self._move_moments(lambda tensor: tensor.to(self._device, non_blocking=True))

    def _move_moments(self, moved: Callable[[Tensor], Tensor]) -> None:
        """AdamW's moments, and at ZeRO 3 the masters they are of."""
        if self.zero_stage == 3:
            for master in self.deepspeed.optimizer.fp32_partitioned_groups_flat:
                master.data = moved(master.data)
        for state in self.adamw.state.values():
            state |= {name: moved(value) for name, value in state.items() if torch.is_tensor(value) and value.ndim > 0}

    def close(self) -> None:
        """Free what DeepSpeed holds."""
        self.deepspeed.destroy()
        if self._reference is not None:
            self._reference.destroy()


def _on_host(tensor: Tensor) -> Tensor:
    """A copy in pinned memory, if the tensor is on a GPU."""
    if not tensor.is_cuda:
        return tensor
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor)


def join_ranks(rank: int, world_size: int, master_addr: str, master_port: int, timeout_s: float) -> torch.device:
    """Join the other ranks; the device this rank computes on.

    Every variable is set: a missing one would send DeepSpeed looking for MPI.
    """
    cuda = uses_cuda()
    local_rank = rank % torch.cuda.device_count() if cuda else rank
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    os.environ.update(zip(names, map(str, (rank, world_size, local_rank, master_addr, master_port)), strict=True))
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled on the spot
    backend = "nccl" if cuda else "gloo"
    _init_process_group(rank, world_size, master_addr, master_port, backend, timedelta(seconds=timeout_s))
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)
    if cuda:
        torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank) if cuda else torch.device("cpu")


def _init_process_group(
    rank: int, world_size: int, master_addr: str, master_port: int, backend: str, timeout: timedelta
) -> None:
    """Rank 0 listens on `master_addr` alone: torch by itself would listen on every interface.

    Ranks over gloo talk by the interface from which they reach it; gloo by itself would take the host's name for it.
    NCCL finds its own.
    """
    if dist.is_initialized():  # by an earlier learner of this process
        return
    listening = socket.create_server((master_addr, master_port)).detach() if rank == 0 else None
    if backend == "gloo" and (interface := own_interface(master_addr, master_port)):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    store = dist.TCPStore(
        master_addr, master_port, world_size, is_master=rank == 0, timeout=timeout, master_listen_fd=listening
    )
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)


def _whole_bytes(weight: NamedWeight) -> int:
    parameter = weight.parameter
    return getattr(parameter, "ds_numel", parameter.numel()) * parameter.element_size()
