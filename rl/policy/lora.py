"""LoRA: low-rank updates beside frozen weights (Hu et al., arXiv:2106.09685). The door to peft.

The learner computes with weight and update apart; what leaves it, to engines, checkpoints and exports, are weights with
their updates added, under the names they have without LoRA: W + alpha / rank * B A, added in float32.

Legend: r rank.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn

from rl.config.policy import OF_TOWER, LoraConfig
from rl.policy.adapter_files import DIGEST, WEIGHTS
from rl.policy.token_ids import PolicyFilesError

ADAPTER = "default"  # peft's name for the only one there is
BASE, UPDATES = ".base_layer.", (".lora_A.", ".lora_B.")
PARTS = {  # policy.lora.full -> whose parameters
    "merger": re.compile(r"model\.visual\.(merger|deepstack_merger_list)\..*"),
    "lm_head": re.compile(r"lm_head\..*"),
    "embed_tokens": re.compile(r"model\.language_model\.embed_tokens\..*"),
}


@dataclass(frozen=True, slots=True, eq=False)
class NamedWeight:
    """A parameter of the policy as it is without LoRA, and its update."""

    name: str  # Hugging Face's
    parameter: nn.Parameter
    update: tuple[nn.Parameter, nn.Parameter, float] | None = None  # A (r, in), B (out, r), alpha / rank

    @property
    def trains(self) -> bool:
        """Whether steps change it."""
        return self.parameter.requires_grad or self.update is not None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that `value` reads."""
        return [self.parameter, *(self.update[:2] if self.update else ())]

    def value(self) -> Tensor:
        """The weight with its update added; without one the parameter itself."""
        weight = self.parameter.detach()
        if self.update is None:
            return weight
        return with_update(weight, *self.update)


def with_update(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + scale B A, added in float32, in the type of W.

    Args:
        weight: (out, in).
        a: (r, in).
        b: (out, r).
    """
    return weight.float().addmm(b.detach().float(), a.detach().float(), alpha=scale).to(weight.dtype)


def add_lora(model: nn.Module, config: LoraConfig, seed: int) -> None:
    """Freeze the policy but for updates, which are zero, and for the parts that are trained in full.

    Args:
        seed: of the updates' A, which are random; the same on every rank.
    Raises:
        PolicyFilesError: the policy has no product of a name in `policy.lora.targets`.
    """
    import peft  # takes seconds, and only LoRA needs it

    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    chosen = {target: [name for name in names if _pattern(target).fullmatch(name)] for target in config.targets}
    for target, found in chosen.items():
        if not found:
            raise PolicyFilesError(
                f"policy.lora.targets: this policy has no {target}; its language layers have {_known(names, '')}, its "
                f"tower's blocks {_known(names, OF_TOWER)}"
            )
    modules = sorted({name for found in chosen.values() for name in found})
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        options = {"r": config.rank, "lora_alpha": config.alpha, "target_modules": modules}
        peft.inject_adapter_in_model(peft.LoraConfig(**options), model)
    for name, parameter in model.named_parameters(remove_duplicate=False):  # a tied head has two names
        if any(PARTS[part].fullmatch(name) for part in config.full):
            parameter.requires_grad_(True)


def named_weights(model: nn.Module) -> list[NamedWeight]:
    """Every parameter of a policy as it is without LoRA, in order."""
    weights = []
    for name, parameter in model.named_parameters():
        path, base, leaf = name.rpartition(BASE)
        if is_update(name):
            continue
        if base and leaf == "weight":
            layer = model.get_submodule(path)
            update = (layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, float(layer.scaling[ADAPTER]))
            weights.append(NamedWeight(f"{path}.{leaf}", parameter, update))
        else:
            weights.append(NamedWeight(f"{path}.{leaf}" if base else name, parameter))
    return weights


def is_update(name: str) -> bool:
    """Whether a parameter of this name is of an update."""
    return any(update in name for update in UPDATES)


def write_adapter(
    folder: Path, config: LoraConfig, trained: Iterable[tuple[str, np.ndarray]], base: str, base_digest: str = ""
) -> None:
    """What peft loads onto the policy without updates: adapter_config.json and adapter_model.safetensors.

    Args:
        trained: every trained parameter under the name it has in the learner's model.
        base: of the policy, for whoever reads the configuration.
        base_digest: of its weights (rl.policy.adapter_files), by which another one is told apart; empty: not known.
    """
    import peft

    weights, modules, full = {}, set(), set()
    for name, value in trained:
        module, _, leaf = name.partition(".lora_") if is_update(name) else (name.rpartition(".")[0], "", "")
        (modules if leaf else full).add(module)
        weights[f"base_model.model.{name.replace(f'.{ADAPTER}.', '.') if leaf else name}"] = value
    described = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=sorted(modules),
        modules_to_save=sorted(full) or None,
        base_model_name_or_path=base,
        inference_mode=True,
    )
    described.save_pretrained(str(folder))
    told = {"format": "pt"} | ({DIGEST: base_digest} if base_digest else {})
    save_file(weights, folder / WEIGHTS, metadata=told)


def without_updates(policy: Callable[..., Any], model: nn.Module) -> Callable[..., Any]:
    """The policy before LoRA, by the model itself: a reference that takes no memory.

    Args:
        policy: the model, or a DeepSpeed engine around it.
    """
    layers = [module for module in model.modules() if hasattr(module, "lora_A")]

    def ask(*arguments: Any, **named: Any) -> Any:
        with _disabled(layers):
            return policy(*arguments, **named)

    return ask


@contextmanager
def _disabled(layers: Sequence[Any]) -> Iterator[None]:
    """Layers without their updates. peft's own switch would also stop and start gradients, under DeepSpeed's feet."""
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def _pattern(target: str) -> re.Pattern[str]:
    """Full names of the products that a target means."""
    if target.startswith(OF_TOWER):
        return re.compile(rf"model\.visual\.blocks\.\d+\.(attn|mlp)\.{target.removeprefix(OF_TOWER)}")
    return re.compile(rf"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.{target}")


def _known(names: Sequence[str], prefix: str) -> str:
    part = "model.visual.blocks." if prefix else "model.language_model.layers."
    return ", ".join(dict.fromkeys(prefix + name.rpartition(".")[2] for name in names if name.startswith(part)))
