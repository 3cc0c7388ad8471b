"""The policy the project builds itself: about 1-3 M parameters, a tokenizer trained on the spot, deterministic by seed.

It has every part of its family (Qwen2.5-VL: windowed and full vision attention; Qwen3-VL: learned positions, DeepStack;
both: merger, MRoPE, grouped-query attention) and is saved as an ordinary Hugging Face folder.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedConfig,
)

from rl.config.policy import ScenesConfig, TinyPolicyConfig
from rl.policy.configuration import configuration_class
from rl.policy.families import FAMILIES
from rl.policy.feature_file import write_features
from rl.policy.geometry import padded_vocab
from rl.policy.model import policy_class
from rl.policy.patch_embed import STOCK_FRAMES, expand_temporal_kernel
from rl.policy.policy_folder import flexivideo_section
from rl.policy.tiny_tokenizer import TINY_GEOMETRY, train_tokenizer
from rl.policy.tokenizer_file import added_tokens

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'video' %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WINDOW = 112
RESIDUAL = ("o_proj.weight", "down_proj.weight", "attn.proj.weight", "mlp.linear_fc2.weight")  # end a branch
HEAD_DIM = 32
ROPE = {  # rotary settings of each family: how frequencies are shared by time, height and width, and how they lie
    "qwen2_5_vl": {"rope_theta": 10_000.0, "mrope_section": [4, 6, 6]},
    "qwen3_vl": {"rope_theta": 5e6, "mrope_section": [6, 5, 5], "mrope_interleaved": True},
}
PATCH_BIAS = 0.1  # its spread
TIED_SPREAD = 0.15  # of an embedding that is the head, too: log-probs that spread by about a nat
DEEPSTACK_LEVELS, POSITION_GRID = 3, 8  # of Qwen3-VL's tower: at most as many, and learned positions a side


def build_tiny_policy(
    config: TinyPolicyConfig,
    scenes: ScenesConfig,
    folder: str | Path,
    seed: int,
    *,
    stock: bool = False,
    tied: bool = False,
    tool_tags: Sequence[str] = (),
) -> Path:
    """Build a policy with random weights and its tokenizer; equal arguments give equal files.

    Args:
        folder: created if needed; files in it are overwritten.
        stock: save a stock checkpoint of the family instead, without our tags and with the two-frame kernel.
        tied: the head is the embedding, as in the families' smaller checkpoints.
        tool_tags: of tools beside `span_fps`, which become tokens too.
    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(config.vocab_size, tags=not stock, tool_tags=tool_tags)
    model_config = _model_config(config, tokenizer, None if stock else scenes, tied)
    ours = policy_class(FAMILIES[config.family])
    model = AutoModelForImageTextToText.from_config(model_config) if stock else ours(model_config)
    _initialise(model, seed)
    end = tokenizer.token_to_id("<|im_end|>")
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=tokenizer.token_to_id("<|endoftext|>"))
    model.save_pretrained(folder)
    _save_tokenizer(tokenizer, folder, config.max_position_embeddings)
    if not stock and scenes.difference == "features":
        write_features(folder)
    return folder


def vision_section(config: TinyPolicyConfig) -> dict[str, object]:
    """The tiny policy's `vision_config`, without what says how scenes are cut."""
    patch, merge, tokens_per_second = TINY_GEOMETRY[config.family]
    own = {
        "qwen2_5_vl": {
            "window_size": WINDOW,
            "fullatt_block_indexes": [config.vision_layers - 1],
            "tokens_per_second": tokens_per_second,
        },
        "qwen3_vl": {
            "num_position_embeddings": POSITION_GRID**2,
            "deepstack_visual_indexes": list(range(min(DEEPSTACK_LEVELS, config.vision_layers - 1))),
        },
    }
    return {
        "depth": config.vision_layers,
        "hidden_size": config.vision_hidden_size,
        "intermediate_size": 2 * config.vision_hidden_size,
        "num_heads": config.vision_heads,
        "out_hidden_size": config.hidden_size,
        "patch_size": patch,
        "spatial_merge_size": merge,
        "temporal_patch_size": STOCK_FRAMES,
        **own[config.family],
    }


def _model_config(
    config: TinyPolicyConfig, tokenizer: Tokenizer, scenes: ScenesConfig | None, tied: bool
) -> PreTrainedConfig:
    vision = vision_section(config)
    if scenes is not None:
        vision["flexivideo"] = flexivideo_section(scenes)
    text = {
        "vocab_size": padded_vocab(config.vocab_size),
        "hidden_size": config.hidden_size,
        "intermediate_size": 3 * config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", **ROPE[config.family]},
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
    }
    if config.family == "qwen3_vl":
        text["head_dim"] = HEAD_DIM
    family = FAMILIES[config.family]
    make = configuration_class(family) if scenes is not None else partial(AutoConfig.for_model, family.model_type)
    return make(
        text_config=text,
        vision_config=vision,
        image_token_id=tokenizer.token_to_id("<|image_pad|>"),
        video_token_id=tokenizer.token_to_id("<|video_pad|>"),
        vision_start_token_id=tokenizer.token_to_id("<|vision_start|>"),
        vision_end_token_id=tokenizer.token_to_id("<|vision_end|>"),
        tie_word_embeddings=tied,
        dtype="float32",
    )


@torch.no_grad()
def _initialise(model: nn.Module, seed: int) -> None:
    """Weights for learning from scratch: unit-variance layers, residual branches scaled by depth, quiet logits."""
    generator = torch.Generator().manual_seed(seed)
    depth = {"visual": model.config.vision_config.depth, "language_model": model.config.text_config.num_hidden_layers}
    for name, parameter in sorted(model.named_parameters(), key=lambda item: item[0].replace("embed.proj", "embed")):
        if name.endswith("patch_embed.bias") or name.endswith("patch_embed.proj.bias"):
            parameter.normal_(0.0, PATCH_BIAS, generator=generator)  # or nobody would see it being left out
        elif name.endswith("bias"):
            parameter.zero_()
        elif parameter.ndim == 1:
            parameter.fill_(1.0)
        elif "patch_embed" in name:
            _initialise_kernel(parameter, generator)
        else:
            tied = model.config.tie_word_embeddings and "embed_tokens" in name
            spread = TIED_SPREAD if tied else _spread(name, parameter, depth)
            parameter.normal_(0.0, spread, generator=generator)


def _initialise_kernel(kernel_C3Tpp: nn.Parameter, generator: torch.Generator) -> None:
    """The stock kernel, then expanded, so that stock and expanded policies of a seed are the same function."""
    channels, colours, frames, patch, _ = kernel_C3Tpp.shape
    stock = torch.empty(channels, colours, STOCK_FRAMES, patch, patch)
    stock.normal_(0.0, stock[0].numel() ** -0.5, generator=generator)
    kernel_C3Tpp.copy_(expand_temporal_kernel(stock, frames))


def _spread(name: str, parameter: nn.Parameter, depth: dict[str, int]) -> float:
    if "embed_tokens" in name:
        return 0.5
    if "lm_head" in name:
        return 0.02
    spread = parameter.shape[1] ** -0.5
    if name.endswith(RESIDUAL):
        spread /= math.sqrt(2 * next(layers for tower, layers in depth.items() if tower in name))
    return spread


def _save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": added_tokens(tokenizer),
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
