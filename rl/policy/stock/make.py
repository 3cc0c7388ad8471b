"""`dynframe make-checkpoint`: a random checkpoint of a published size, exactly as the hub ships one.

Real widths, heads, key names, files and vocabulary; as many layers as are asked for. What loads it loads the published
checkpoint. Weights are drawn and written a piece at a time: the whole model is never in memory. Equal arguments give
equal files, and a tensor's values depend on its name and the seed alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForImageTextToText

from rl.policy.geometry import padded_vocab
from rl.policy.sizes import PublishedSize
from rl.policy.stock.hub_files import (
    chat_template,
    generation_config,
    model_config,
    processor_configs,
    tokenizer_config,
)
from rl.policy.stock.vocabulary import qwen_tokenizer
from rl.policy.tiny_tokenizer import train_tokenizer
from rl.policy.token_ids import PolicyFilesError
from rl.policy.tokenizer_file import added_tokens
from rl.policy.weight_files import TensorEntry, require_disk_space, write_index, write_tensors

SHARD_GB = 5.0  # as the hub's
TINY_VOCABULARY = 1024  # tokens of the project's own
DRAWN_AT_ONCE = 2**24  # values: 64 MiB in float32
HUB_NAMES = {  # transformers' name -> the hub's, where a family's files are older than transformers 5
    "qwen2_5_vl": (("model.visual.", "visual."), ("model.language_model.", "model.")),
    "qwen3_vl": (),
}
ENDS_A_BRANCH = ("o_proj.weight", "down_proj.weight", "attn.proj.weight", "mlp.linear_fc2.weight")
BIAS, POSITIONS, LOGITS = 0.05, 0.2, 2.0  # spreads: so that nothing could be left out unseen

OnWritten = Callable[[int], None]  # bytes written since it was last called


def make_checkpoint(
    size: PublishedSize,
    folder: Path,
    *,
    vocabulary: str = "qwen",
    seed: int = 0,
    shard_gb: float = SHARD_GB,
    on_written: OnWritten = lambda _: None,
) -> Path:
    """Write the folder; published by a rename: whole or not there.

    Args:
        size: as published, or cut to fewer layers.
        folder: must not be there.
        vocabulary: "qwen", with the real ids; "tiny": the project's own, with as many rows as it needs.
        shard_gb: the largest file of weights, in 10^9 bytes.
    Raises:
        PolicyFilesError: the folder is there already, the disk is too small, or the vocabulary's package is missing.
    """
    if folder.exists():
        raise PolicyFilesError(f"{folder} is there already; name another folder, or delete it")
    if vocabulary == "qwen":
        tokenizer, rows = qwen_tokenizer(size.family.model_type), size.text.vocab_rows
    else:
        tokenizer, rows = train_tokenizer(TINY_VOCABULARY, tags=False), padded_vocab(TINY_VOCABULARY)
    config = _with_rows(model_config(size, tokenizer.get_vocab(with_added_tokens=True)), rows)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        draft = Path(scratch) / folder.name
        draft.mkdir()
        _write_json(draft / "config.json", config)
        files = _planned_files(draft, size, shard_gb)
        total = sum(entry.nbytes for entries in files.values() for entry in entries.values())
        require_disk_space(folder.parent, total, f"{size.repository} at {size.text.layers} layers")
        _write_small_files(draft, size, tokenizer)
        for name, entries in files.items():
            write_tensors(draft / name, entries, _drawn(entries, size, seed, on_written))
        write_index(draft, files)
        draft.rename(folder)
    return folder


def weight_bytes(size: PublishedSize) -> int:
    """Bytes of weights that a checkpoint of that size has, with the real vocabulary."""
    with tempfile.TemporaryDirectory() as folder:
        _write_json(Path(folder) / "config.json", model_config(size))
        files = _planned_files(Path(folder), size, SHARD_GB)
    return sum(entry.nbytes for entries in files.values() for entry in entries.values())


def _with_rows(config: dict[str, Any], rows: int) -> dict[str, Any]:
    config.get("text_config", config)["vocab_size"] = rows
    return config


def _planned_files(folder: Path, size: PublishedSize, shard_gb: float) -> dict[str, dict[str, TensorEntry]]:
    """Which tensor, under the hub's name, lies in which file: as transformers names and shapes them."""
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    tensors = {_hub_name(name, size): tensor for name, tensor in model.state_dict().items()}
    if size.text.is_tied:
        tensors.pop("lm_head.weight")
    split = split_torch_state_dict_into_shards(
        tensors, filename_pattern="model{suffix}.safetensors", max_shard_size=int(shard_gb * 1e9)
    )
    return {
        file: {name: TensorEntry("BF16", tuple(tensors[name].shape)) for name in names}
        for file, names in split.filename_to_tensors.items()
    }


def _hub_name(name: str, size: PublishedSize) -> str:
    for ours, theirs in HUB_NAMES[size.family.model_type]:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def _drawn(
    entries: Mapping[str, TensorEntry], size: PublishedSize, seed: int, on_written: OnWritten
) -> Iterator[memoryview]:
    """Bytes of the tensors in bf16, a piece at a time."""
    for name, entry in entries.items():
        mean, spread = _distribution(name, entry.shape, size)
        digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        left = math.prod(entry.shape)
        while left:
            piece = torch.empty(min(left, DRAWN_AT_ONCE)).normal_(mean, spread, generator=generator)
            chunk = memoryview(piece.to(torch.bfloat16).view(torch.uint8).numpy())
            yield chunk
            on_written(chunk.nbytes)
            left -= len(piece)


def _distribution(name: str, shape: tuple[int, ...], size: PublishedSize) -> tuple[float, float]:
    """Mean and spread of a tensor: a network that passes signals on, and whose log-probs are not all alike."""
    if name.endswith("bias"):
        return 0.0, BIAS
    if len(shape) == 1:  # of a norm
        return 1.0, BIAS
    if "pos_embed" in name:
        return 0.0, POSITIONS
    fan_in = math.prod(shape[1:])
    if name.startswith("lm_head") or (size.text.is_tied and "embed_tokens" in name):
        return 0.0, LOGITS * fan_in**-0.5
    depth = size.vision.depth if "visual" in name else size.text.layers
    return 0.0, (fan_in * 2 * depth) ** -0.5 if name.endswith(ENDS_A_BRANCH) else fan_in**-0.5


def _write_small_files(folder: Path, size: PublishedSize, tokenizer: Tokenizer) -> None:
    ids = tokenizer.get_vocab(with_added_tokens=True)
    template, added = chat_template(size), added_tokens(tokenizer)
    special = [str(token["content"]) for token in added.values() if token["special"]]
    _write_json(folder / "generation_config.json", generation_config(size, ids))
    for name, content in processor_configs(size).items():
        _write_json(folder / name, content)
    _write_json(folder / "chat_template.json", {"chat_template": template})
    _write_json(folder / "tokenizer_config.json", tokenizer_config(special, added) | {"chat_template": template})
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))  # vocab.json and merges.txt


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
