"""A policy brought to a rank's device parameter by parameter: whole, or cut up over the ranks (ZeRO 3).

It comes mapped from its files (rl.policy.model.map_policy): pages of the page cache, which all ranks of a host share.
Each parameter is moved, cast and, at ZeRO 3, cut up before the next one is touched, so that a rank never holds more
private memory than what it keeps, and one parameter. docs/decisions/0035-loading.md says why transformers does not do
it (HfDeepSpeedConfig).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import deepspeed
import torch
from torch import nn


def place_whole(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Everything of the model on this rank's device. What is there already stays as it is, mapped."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(device, dtype)
    _place_buffers(model, device)


def place_cut_up(model: nn.Module, device: torch.device, dtype: torch.dtype, settings: Mapping[str, Any]) -> None:
    """Of every parameter one part per rank, cut as DeepSpeed cuts it. Collective; rank 0's values count.

    Args:
        settings: DeepSpeed's configuration, with `zero_optimization.stage` 3.
    """
    cut_up: Callable[[list[nn.Parameter]], None] | None = None
    for parameter in model.parameters():
        parameter.data = parameter.data.to(device, dtype, copy=True)  # DeepSpeed writes into it
        if cut_up is None:
            deepspeed.zero.Init(module=nn.ParameterList([parameter]), config_dict_or_path=dict(settings))
            cut_up = parameter.convert_to_zero_parameters  # a parameter that is cut up can do the same to others
        else:
            cut_up([parameter])
    _place_buffers(model, device)


def cut_up_for_inference(
    model: nn.Module, device: torch.device, dtype: torch.dtype, settings: Mapping[str, Any]
) -> Any:
    """The DeepSpeed engine of a model that is asked and never trained: it gathers parameters as they are used."""
    place_cut_up(model, device, dtype, settings)
    return deepspeed.initialize(model=model, config=dict(settings), dist_init_required=False)[0]


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """The shape of a parameter that may be cut up."""
    return getattr(parameter, "ds_shape", parameter.shape)


def _place_buffers(model: nn.Module, device: torch.device) -> None:
    """Buffers keep their type: rotary frequencies are float32 whatever the policy computes in."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
