"""The JSON files of a checkpoint as the hub ships them: keys, nesting and values of each family. No torch.

Qwen2.5-VL's config.json is flat, Qwen3-VL's has a `text_config`; both say `rope_scaling` and the ids of special tokens
as transformers 4 wrote them. The files are made from a published size alone, so that a configuration at real widths is
at hand wherever no checkpoint is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rl.policy.sizes import HEAD_DIM, PublishedSize

PUBLISHED_IDS: Mapping[str, int] = {  # of Qwen's vocabulary
    "<|endoftext|>": 151643,
    "<|im_end|>": 151645,
    "<|vision_start|>": 151652,
    "<|vision_end|>": 151653,
    "<|vision_pad|>": 151654,
    "<|image_pad|>": 151655,
    "<|video_pad|>": 151656,
}
MERGE, FRAMES_PER_PATCH = 2, 2
PATCH = {"qwen2_5_vl": 14, "qwen3_vl": 16}
PROCESSOR = {"qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen3_vl": "Qwen3VLProcessor"}
CHAT_TEMPLATE = (  # messages of text, images and videos; the hub's also knows tools
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}SYSTEM{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part['type'] in ('image', 'image_url') %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT_SYSTEM = {"qwen2_5_vl": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n", "qwen3_vl": ""}


def model_config(size: PublishedSize, ids: Mapping[str, int] = PUBLISHED_IDS) -> dict[str, Any]:
    """config.json.

    Args:
        ids: of special tokens, where the tokenizer is not Qwen's.
    """
    shared = {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": size.text.is_tied,
        "model_type": size.family.model_type,
    }
    return _CONFIGS[size.family.model_type](size, ids, shared)


def generation_config(size: PublishedSize, ids: Mapping[str, int] = PUBLISHED_IDS) -> dict[str, Any]:
    """generation_config.json: how the published model samples where nobody says otherwise."""
    end = ids["<|endoftext|>"]
    sampling = {
        "qwen2_5_vl": {"repetition_penalty": 1.05, "temperature": 1e-06},
        "qwen3_vl": {"top_p": 0.8, "top_k": 20, "temperature": 0.7},
    }[size.family.model_type]
    return {
        "bos_token_id": end,
        "pad_token_id": end,
        "do_sample": True,
        "eos_token_id": [ids["<|im_end|>"], end],
        **sampling,
    }


def processor_configs(size: PublishedSize) -> dict[str, dict[str, Any]]:
    """The files that say how images and videos are made into patches, by name."""
    family = size.family
    shared = {
        "patch_size": PATCH[family.model_type],
        "temporal_patch_size": FRAMES_PER_PATCH,
        "merge_size": MERGE,
        "image_mean": list(family.pixel_mean),
        "image_std": list(family.pixel_std),
        "processor_class": PROCESSOR[family.model_type],
    }
    if family.model_type == "qwen2_5_vl":
        limits = {"min_pixels": 3136, "max_pixels": 12_845_056, "image_processor_type": "Qwen2VLImageProcessor"}
        return {"preprocessor_config.json": shared | limits}
    image = {
        "size": {"longest_edge": 16_777_216, "shortest_edge": 65_536},
        "image_processor_type": "Qwen2VLImageProcessorFast",
    }
    video = {
        "size": {"longest_edge": 25_165_824, "shortest_edge": 4096},
        "video_processor_type": "Qwen3VLVideoProcessor",
    }
    return {"preprocessor_config.json": shared | image, "video_preprocessor_config.json": shared | video}


def tokenizer_config(special: list[str], added: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """tokenizer_config.json.

    Args:
        special: texts of special tokens.
        added: of every added token what `added_tokens_decoder` says, by id.
    """
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": dict(added),
        "additional_special_tokens": [text for text in special if text != "<|endoftext|>"],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131_072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def chat_template(size: PublishedSize) -> str:
    """The template of messages, without tools."""
    return CHAT_TEMPLATE.replace("SYSTEM", DEFAULT_SYSTEM[size.family.model_type])


def _qwen2_5_vl(size: PublishedSize, ids: Mapping[str, int], shared: dict[str, Any]) -> dict[str, Any]:
    vision = _vision(size) | {
        "hidden_act": "silu",
        "in_chans": 3,
        "spatial_patch_size": PATCH["qwen2_5_vl"],
        "window_size": 112,
        "fullatt_block_indexes": list(size.vision.full_attention),
        "tokens_per_second": 2,
    }
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        **shared,
        **_text(size),
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "max_position_embeddings": 128_000,
        "max_window_layers": 70,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "rope_theta": 1e6,
        "sliding_window": 32_768,
        "use_sliding_window": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "vision_config": vision,
    }


def _qwen3_vl(size: PublishedSize, ids: Mapping[str, int], shared: dict[str, Any]) -> dict[str, Any]:
    text = _text(size) | {
        "model_type": "qwen3_vl_text",
        "attention_bias": False,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "dtype": "bfloat16",
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 262_144,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        "rope_theta": 5_000_000,
        "tie_word_embeddings": size.text.is_tied,
    }
    vision = _vision(size) | {
        "model_type": "qwen3_vl",
        "hidden_act": "gelu_pytorch_tanh",
        "in_channels": 3,
        "initializer_range": 0.02,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": list(size.vision.deepstack),
    }
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        **shared,
        "text_config": text,
        "vision_config": vision,
        "transformers_version": "4.57.0.dev0",
    }


def _text(size: PublishedSize) -> dict[str, Any]:
    text = size.text
    return {
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": text.hidden,
        "initializer_range": 0.02,
        "intermediate_size": text.intermediate,
        "num_attention_heads": text.heads,
        "num_hidden_layers": text.layers,
        "num_key_value_heads": text.kv_heads,
        "rms_norm_eps": 1e-06,
        "use_cache": True,
        "vocab_size": text.vocab_rows,
    }


def _vision(size: PublishedSize) -> dict[str, Any]:
    vision = size.vision
    return {
        "depth": vision.depth,
        "hidden_size": vision.hidden,
        "intermediate_size": vision.intermediate,
        "num_heads": vision.heads,
        "out_hidden_size": size.text.hidden,
        "patch_size": PATCH[size.family.model_type],
        "spatial_merge_size": MERGE,
        "temporal_patch_size": FRAMES_PER_PATCH,
    }


_CONFIGS = {"qwen2_5_vl": _qwen2_5_vl, "qwen3_vl": _qwen3_vl}
