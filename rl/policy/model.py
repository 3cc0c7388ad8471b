"""The learner's policy, loaded from a folder and saved to one. Files and names are those of rl.policy.policy_folder."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

import torch

from rl.config.policy import ScenesConfig
from rl.policy.configuration import read_configuration
from rl.policy.families import Family, family_of
from rl.policy.packed_attention import PACKED
from rl.policy.policy_folder import require_inert, require_scenes
from rl.policy.processor import Processor
from rl.policy.token_ids import PolicyFilesError
from rl.policy.video_policy import VideoPolicy
from rl.policy.weight_files import stored_dtype

ATTENTION = {"": "sdpa", "text_config": PACKED, "vision_config": "sdpa"}


def load_policy(folder: str | Path, scenes: ScenesConfig, dtype: torch.dtype | str = torch.float32) -> VideoPolicy:
    """The policy of a folder of ours; `convert_stock_checkpoint` makes one from a stock checkpoint.

    Raises:
        PolicyFilesError: a stock checkpoint, another family's, one made for other scene parameters, or weights that do
            not fit.
    """
    require_inert(Path(folder))
    family = family_of(folder)
    config = read_configuration(folder)
    require_scenes(config, scenes, folder)
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    model, loading = policy_class(family).from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        attn_implementation=ATTENTION,
        output_loading_info=True,
        use_safetensors=True,
    )
    wrong = {kind: sorted(map(str, names)) for kind, names in loading.items() if names}
    if wrong:
        raise PolicyFilesError(f"{folder}: weights do not fit the model: {wrong}")
    return model


def map_policy(folder: str | Path, scenes: ScenesConfig) -> VideoPolicy:
    """As `load_policy`, in the type the weights are stored in: no parameter is copied, all are pages of the files.

    For a caller that moves and casts parameters itself, one after the other (rl.learner.loading). What is written to
    such a parameter becomes a private copy of its pages, and never gets into the files. Buffers are in memory.
    """
    return load_policy(folder, scenes, stored_dtype(Path(folder)))


def policy_class(family: Family) -> type[Any]:
    """The learner's class of a family; its file is imported when it is asked for."""
    return getattr(importlib.import_module(family.learner), family.architecture)


def save_policy(model: VideoPolicy, processor: Processor, folder: str | Path) -> None:
    """An ordinary Hugging Face folder: configuration, weights, tokenizer, chat template."""
    model.save_pretrained(folder)
    processor.save(folder)


def save_all_but_weights(model: VideoPolicy, processor: Processor, folder: str | Path) -> None:
    """What `save_policy` writes beside the weights, which may be cut up (ZeRO 3)."""
    config = copy.deepcopy(model.config)
    config.architectures, config.dtype = [type(model).__name__], model.dtype
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    processor.save(folder)


def recompute_activations(model: VideoPolicy, *, language: bool, vision: bool) -> None:
    """Keep of the language model's layers, or of the tower's blocks, what goes into them alone: the backward pass
    computes the rest again. In training mode, by transformers' own checkpointing.

    Each part is told by itself: asked of the whole model, a frozen tower would have to hand gradients on to its pixels.
    """
    for part, is_recomputed in ((model.model.language_model, language), (model.model.visual, vision)):
        if is_recomputed:
            part.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def freeze_vision(model: VideoPolicy) -> None:
    """Stop training patch embedding, learned positions and ViT blocks; mergers and language model stay trained."""
    for _, part in model.model.visual.trunk_parts():
        part.requires_grad_(False)
