"""From a stock checkpoint of a known family to a policy folder of ours, once, shard by shard.

The two-frame patch kernel is expanded in time (its bias stays as it is), the tags join the tokenizer, their embedding
rows start at the mean of the existing ones plus small noise. Whatever loads a policy afterwards, ZeRO-3 included, reads
an ordinary folder.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer

from rl.config.policy import ScenesConfig
from rl.policy.configuration import own_configuration, read_configuration
from rl.policy.families import STOCK_KERNEL, Family, family_of, is_ours, read_config
from rl.policy.geometry import padded_vocab, require_explicit_clock
from rl.policy.patch_embed import expand_temporal_kernel
from rl.policy.policy_folder import OPTIONAL_FILES, TOKENIZER_FILES, flexivideo_section, require_inert, require_scenes
from rl.policy.token_ids import TAG_TOKENS, PolicyFilesError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
RENAMES = ((r"^visual\.", "model.visual."), (r"^model\.(?!language_model\.|visual\.)", "model.language_model."))
ROWS_PER_TOKEN = ("model.language_model.embed_tokens.weight", "lm_head.weight")
NOISE = 0.02  # of the spread of the existing rows


def prepare_policy(path: str | Path, scenes: ScenesConfig, cache_dir: str | Path, seed: int = 0) -> Path:
    """The folder to load a policy from: `path` itself if it is ours, else its conversion, made on first use.

    Raises:
        PolicyFilesError: no checkpoint there, or one of ours made for other scene parameters.
    """
    path = Path(path)
    if not (path / "config.json").is_file():
        raise PolicyFilesError(f"policy.path={path}: no config.json; give a Hugging Face folder of a policy")
    require_inert(path)
    family_of(path)
    if is_ours(read_config(path / "config.json")):
        require_scenes(read_configuration(path), scenes, path)
        return path
    origin = f"{path.resolve()} {(path / 'config.json').stat().st_mtime_ns} {flexivideo_section(scenes)} {seed}"
    folder = Path(cache_dir) / "converted" / hashlib.sha256(origin.encode()).hexdigest()[:16]
    return folder if folder.is_dir() else convert_stock_checkpoint(path, folder, scenes, seed)


def convert_stock_checkpoint(source: str | Path, target: str | Path, scenes: ScenesConfig, seed: int = 0) -> Path:
    """Write the policy folder `target` from the stock checkpoint `source`. Published by a rename: whole or not there.

    Raises:
        PolicyFilesError: files are missing, unreadable or of no family that can be trained here.
    """
    source, target = Path(source), Path(target)
    require_inert(source)
    family = family_of(source)
    require_explicit_clock(read_config(source / "config.json"), family, source / "config.json")
    config = own_configuration(read_configuration(source).to_dict(), family)
    tokenizer, new_ids = _tagged_tokenizer(source)
    vocab_size = max(config.text_config.vocab_size, tokenizer.get_vocab_size())
    config.text_config.vocab_size = padded_vocab(vocab_size)
    config.vision_config.flexivideo = flexivideo_section(scenes)
    config.architectures = [family.architecture]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        folder = Path(scratch) / target.name
        folder.mkdir()
        _convert_weights(source, folder, family, scenes, new_ids, config.text_config.vocab_size, seed)
        config.save_pretrained(folder)
        _write_tokenizer(source, folder, tokenizer)
        folder.rename(target)
    return target


def _tagged_tokenizer(source: Path) -> tuple[Tokenizer, list[int]]:
    path = source / "tokenizer.json"
    if not path.is_file():
        raise PolicyFilesError(f"{path}: no such file; a checkpoint needs its fast tokenizer")
    tokenizer = Tokenizer.from_file(str(path))
    absent = [text for text in TAG_TOKENS if tokenizer.token_to_id(text) is None]
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in absent])
    return tokenizer, [tokenizer.token_to_id(text) for text in absent]


def _convert_weights(
    source: Path,
    folder: Path,
    family: Family,
    scenes: ScenesConfig,
    new_ids: list[int],
    vocab_size: int,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight_map, total = {}, 0
    for shard in _shards(source):
        converted = {}
        try:
            with safe_open(source / shard, framework="pt") as weights:
                for stock_name in sorted(weights.keys()):
                    name = canonical_name(stock_name)
                    tensor = weights.get_tensor(stock_name)
                    if name == STOCK_KERNEL:
                        tensor = _kernel(tensor, scenes)
                    elif name in ROWS_PER_TOKEN:
                        tensor = with_new_rows(tensor, new_ids, vocab_size, generator)
                    converted[family.renames.get(name, name)] = tensor.contiguous()
        except (OSError, SafetensorError) as error:
            raise PolicyFilesError(f"{source / shard}: cannot be read ({error})") from error
        save_file(converted, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(converted, shard)
        total += sum(tensor.nbytes for tensor in converted.values())
    absent = [stock for stock, ours in family.renames.items() if ours not in weight_map]
    if absent:
        raise PolicyFilesError(f"{source}: no {', '.join(absent)}; not a checkpoint of {family.model_type}")
    if set(weight_map.values()) != {SINGLE}:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def canonical_name(name: str) -> str:
    """The name transformers 5 gives a weight, whichever release wrote it."""
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def with_new_rows(
    rows_VE: torch.Tensor, new_ids: list[int], vocab_size: int, generator: torch.Generator
) -> torch.Tensor:
    """Rows for `vocab_size` ids; those of `new_ids` and of ids that had none are the mean of the others, plus noise."""
    fresh = sorted({*new_ids, *range(len(rows_VE), vocab_size)})
    known_E = torch.ones(len(rows_VE), dtype=torch.bool)
    known_E[[token_id for token_id in fresh if token_id < len(rows_VE)]] = False
    known = rows_VE[known_E].float()
    noise = torch.randn(len(fresh), rows_VE.shape[1], generator=generator) * known.std() * NOISE
    grown_VE = rows_VE.new_zeros(vocab_size, rows_VE.shape[1])
    grown_VE[: len(rows_VE)] = rows_VE
    grown_VE[fresh] = (known.mean(0) + noise).to(rows_VE.dtype)
    return grown_VE


def _kernel(stock: torch.Tensor, scenes: ScenesConfig) -> torch.Tensor:
    return stock if scenes.mode == "fixed" else expand_temporal_kernel(stock, scenes.init_frames)


def _shards(source: Path) -> list[str]:
    if (source / INDEX).is_file():
        return sorted(set(json.loads((source / INDEX).read_text())["weight_map"].values()))
    if (source / SINGLE).is_file():
        return [SINGLE]
    raise PolicyFilesError(f"{source}: neither {INDEX} nor {SINGLE}; weights must be safetensors")


def _write_tokenizer(source: Path, folder: Path, tokenizer: Tokenizer) -> None:
    for name in (*TOKENIZER_FILES, *OPTIONAL_FILES, "generation_config.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    tokenizer.save(str(folder / "tokenizer.json"))
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) if path.is_file() else {}
    settings["added_tokens_decoder"] = added_tokens(tokenizer)
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def added_tokens(tokenizer: Tokenizer) -> dict[str, dict[str, object]]:
    """What tokenizer_config.json says of the added tokens."""
    names = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    found = sorted(tokenizer.get_added_tokens_decoder().items())
    return {str(token_id): {name: getattr(token, name) for name in names} for token_id, token in found}
