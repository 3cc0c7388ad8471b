"""Optimizer steps of one rank: by DeepSpeed as in training, and by torch alone where DeepSpeed is not installed.

Both keep weights in bfloat16, and gradients of micro-batches, master weights and AdamW's moments in float32: 18 bytes a
trained parameter.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rl.config.learner import LearnerConfig


class Steps(Protocol):
    """What the benchmark asks of either engine."""

    policy: nn.Module  # to be called

    def step(self, losses: Sequence[Callable[[], Tensor]], lr: float) -> float:
        """Accumulate the gradients of all micro-batches and take a step; the gradient's norm before clipping."""

    def gradients(self, losses: Sequence[Callable[[], Tensor]]) -> dict[str, Tensor]:
        """The gradients accumulated over all micro-batches, float32 on the CPU, by name; no step is taken."""

    def state(self) -> dict[str, Tensor]:
        """Master weights and AdamW's moments."""

    def close(self) -> None:
        """Free what is held."""


def has_deepspeed() -> bool:
    """Whether DeepSpeed is installed."""
    return importlib.util.find_spec("deepspeed") is not None


def join(engine: str, device: torch.device) -> None:
    """Make this process the only rank."""
    if dist.is_initialized():
        return
    if engine == "deepspeed":
        from rl.learner.engine import join_ranks

        with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as probe:
            port = probe.getsockname()[1]
        join_ranks(0, 1, "127.0.0.1", port, 300.0)
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def make_engine(engine: str, model: nn.Module, config: LearnerConfig, accumulate: str, folder: Path) -> Steps:
    """An engine by its name.

    Args:
        engine: deepspeed | torch.
        accumulate: fp32, as in training | bf16, as DeepSpeed does by itself.
        folder: for DeepSpeed's settings.
    """
    return _ENGINES[engine](model, config, accumulate, folder)


class DeepSpeedSteps:
    """The project's own engine at ZeRO 2."""

    def __init__(self, model: nn.Module, config: LearnerConfig, accumulate: str, folder: Path) -> None:
        from rl.learner.engine import TrainingEngine

        if accumulate != "fp32":
            path = folder / "accumulate.json"
            path.write_text(json.dumps({"data_types": {"grad_accum_dtype": accumulate}}))
            config = LearnerConfig(zero_stage=2, deepspeed_config=str(path), optimizer=config.optimizer)
        self._engine = TrainingEngine(model, config, "bfloat16", next(model.parameters()).device, 1)
        self.policy: nn.Module = self._engine.deepspeed

    def step(self, losses: Sequence[Callable[[], Tensor]], lr: float) -> float:
        """As Steps."""
        return self._engine.step(losses, lr).grad_norm

    def gradients(self, losses: Sequence[Callable[[], Tensor]]) -> dict[str, Tensor]:
        """As Steps."""
        from deepspeed.utils import safe_get_full_grad

        engine = self._engine.deepspeed
        for index, loss in enumerate(losses):
            engine.set_gradient_accumulation_boundary(index == len(losses) - 1)
            engine.backward(loss())
        named = {name: safe_get_full_grad(p) for name, p in engine.module.named_parameters() if p.requires_grad}
        return {name: gradient.float().cpu() for name, gradient in named.items() if gradient is not None}

    def state(self) -> dict[str, Tensor]:
        """As Steps."""
        from rl.learner.rank_files import Layout
        from rl.learner.state import optimizer_tensors

        return optimizer_tensors(self._engine.deepspeed, self._engine.adamw, Layout(2, 1, 0))

    def close(self) -> None:
        """As Steps."""
        self._engine.close()


class TorchSteps:
    """The same arithmetic without DeepSpeed: nothing is cut up, since there is one rank."""

    def __init__(self, model: nn.Module, config: LearnerConfig, accumulate: str, folder: Path) -> None:
        self.policy = model
        self._clip = config.optimizer.max_grad_norm
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._masters: dict[str, nn.Parameter] = {}  # made at the first step, as AdamW's moments are
        self._dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[accumulate]
        self._sums: dict[str, Tensor] = {}
        self._options = config.optimizer
        self._adamw: torch.optim.AdamW | None = None
        for name, parameter in self._trained.items():
            parameter.register_post_accumulate_grad_hook(lambda p, name=name: self._add(name, p))

    def step(self, losses: Sequence[Callable[[], Tensor]], lr: float) -> float:
        """As Steps."""
        self._accumulate(losses)
        adamw = self._optimizer()
        for name, master in self._masters.items():
            master.grad = self._sums.pop(name).float()
        norm = nn.utils.clip_grad_norm_(self._masters.values(), self._clip, foreach=True)
        for group in adamw.param_groups:
            group["lr"] = lr
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_copy_(list(self._trained.values()), list(self._masters.values()))
        return float(norm)

    def gradients(self, losses: Sequence[Callable[[], Tensor]]) -> dict[str, Tensor]:
        """As Steps."""
        self._accumulate(losses)
        return {name: self._sums.pop(name).float().cpu() for name in list(self._sums)}

    def state(self) -> dict[str, Tensor]:
        """As Steps."""
        kept: dict[str, Tensor] = {}
        for name, master in self._masters.items():
            moments: Mapping[str, Tensor] = self._optimizer().state.get(master, {})
            kept |= {f"{name}.master": master.detach(), **{f"{name}.{key}": value for key, value in moments.items()}}
        return kept

    def close(self) -> None:
        """As Steps."""
        self._masters.clear()
        self._sums.clear()
        self._adamw = None

    def _optimizer(self) -> torch.optim.AdamW:
        if self._adamw is None:
            self._masters = {name: nn.Parameter(p.detach().float()) for name, p in self._trained.items()}
            options, fused = self._options, next(iter(self._masters.values())).is_cuda
            self._adamw = torch.optim.AdamW(
                self._masters.values(),
                lr=options.lr,
                betas=tuple(options.betas),
                weight_decay=options.weight_decay,
                fused=fused,
            )
        return self._adamw

    def _accumulate(self, losses: Sequence[Callable[[], Tensor]]) -> None:
        for loss in losses:
            loss().backward()

    def _add(self, name: str, parameter: nn.Parameter) -> None:
        if name in self._sums:
            self._sums[name] += parameter.grad
        else:
            self._sums[name] = parameter.grad.to(self._dtype, copy=True)
        parameter.grad = None


_ENGINES: Mapping[str, Callable[..., Steps]] = {"deepspeed": DeepSpeedSteps, "torch": TorchSteps}
