"""A LoRA adapter's folder as peft stores it: what it would do to a policy's weights, and whether it was made for them.

Adapters say for which weights they were made by nothing but names and shapes. Those that `dynframe export --adapter`
writes also carry a digest of them, by which another policy of the same size is told apart. No torch, no peft.

Legend: r rank.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from rl.policy.policy_folder import PICKLES
from rl.policy.token_ids import PolicyFilesError
from rl.policy.weight_files import TensorEntry, read_header, read_rows, read_weights

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
DIGEST = "base_digest"  # in the metadata of the weights' file
PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
PLAIN = {  # settings of peft's that make an adapter more than W + scale B A, and their values where they do not
    "use_dora": (False,),
    "fan_in_fan_out": (False,),
    "bias": ("none",),
    "lora_bias": (False,),
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    "target_parameters": ([],),
}


@dataclass(frozen=True, slots=True)
class Adapter:
    """What an adapter does to which weights."""

    scale: float  # of B A
    updated: Mapping[str, tuple[str, str]]  # a weight's name -> names of its A (r, in) and B (out, r) in the file
    replaced: Mapping[str, str]  # names of weights that were trained in full -> theirs in the file


def require_adapter(folder: Path) -> None:
    """Refuse a folder that holds no adapter, whatever policy it may be for.

    Raises:
        PolicyFilesError: names the file, the key and what to do.
    """
    _scale(_settings(folder), folder)
    _tensors(folder)


def read_adapter(folder: Path, weights: Mapping[str, TensorEntry], base: Path) -> Adapter:
    """What an adapter would do to a policy's weights; of them and of it, names, shapes and the digest are looked at.

    Args:
        weights: of the policy in `base`, by name.
    Raises:
        PolicyFilesError: it holds no adapter that can be added, or one of another policy's; names the file, the key and
            what to do.
    """
    settings, tensors = _settings(folder), _tensors(folder)
    names = {name.removeprefix(PREFIX).removesuffix(A) + ".weight": name for name in tensors if name.endswith(A)}
    updated = {name: (first, first.removesuffix(A) + B) for name, first in names.items()}
    in_pairs = {part for pair in updated.values() for part in pair}
    adapter = Adapter(
        _scale(settings, folder),
        updated,
        {name.removeprefix(PREFIX): name for name in tensors if name not in in_pairs},
    )
    for name in (*adapter.updated, *adapter.replaced):
        if name not in weights:
            raise _of_another(folder, f"{name}, which {base} has not", base)
    for name, (a, b) in adapter.updated.items():
        (rank, rows), (columns, width) = _shape(tensors, a, folder), _shape(tensors, b, folder)
        if not rank == width == settings["r"]:
            raise PolicyFilesError(
                f"{folder / WEIGHTS}: {a} and {b} are of ranks {rank} and {width}, {CONFIG} says r={settings['r']}: "
                "they are of different adapters; copy both files again"
            )
        if weights[name].shape != (columns, rows):
            raise _of_another(folder, f"{name} of {(columns, rows)}, {base} one of {weights[name].shape}", base)
    for name, ours in adapter.replaced.items():
        if weights[name].shape != tensors[ours].shape:
            raise _of_another(folder, f"{name} of {tensors[ours].shape}, {base} one of {weights[name].shape}", base)
    if (told := _told_digest(folder)) and told != weights_digest(base):
        raise _of_another(folder, f"weights of digest {told[:12]}, {base} has others of the same shapes", base)
    return adapter


def weights_digest(folder: Path) -> str:
    """SHA-256 of a policy's weights, whatever files they lie in: names, types, shapes and bytes."""
    placed = {name: (file, entry) for file, entries in read_weights(folder).items() for name, entry in entries.items()}
    digest = hashlib.sha256()
    for name, (file, entry) in sorted(placed.items()):
        digest.update(f"{name} {entry.dtype} {entry.shape}\n".encode())
        for rows in read_rows(folder / file, entry):
            digest.update(rows)
    return digest.hexdigest()


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        is_policy = (folder / "config.json").is_file()
        raise PolicyFilesError(
            f"policy.adapter: {f'{folder} is a policy: give it as policy.path' if is_policy else f'no file {path}'}"
        )
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PolicyFilesError(f"{path}: cannot be read as JSON ({error!r:.100}); was it copied in full?") from error
    if not isinstance(settings, dict) or settings.get("peft_type") != "LORA":
        kind = settings.get("peft_type") if isinstance(settings, dict) else None
        raise PolicyFilesError(f"{path}: peft_type is {kind!r:.40}; only adapters of LoRA can be added (LORA)")
    for key, plain in PLAIN.items():
        if settings.get(key) and settings[key] not in plain:
            raise PolicyFilesError(
                f"{path}: {key}={settings[key]!r:.60} is more than W + alpha / rank B A: add it with peft "
                "(merge_and_unload), and give what that makes as policy.path"
            )
    return settings


def _scale(settings: Mapping[str, Any], folder: Path) -> float:
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if not (isinstance(rank, int) and rank > 0 and isinstance(alpha, int | float)):
        raise PolicyFilesError(f"{folder / CONFIG}: r={rank!r:.20}, lora_alpha={alpha!r:.20}: neither may be missing")
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _tensors(folder: Path) -> dict[str, TensorEntry]:
    path = folder / WEIGHTS
    if pickles := [] if path.is_file() else sorted(file for file in folder.iterdir() if file.suffix in PICKLES):
        raise PolicyFilesError(
            f"{pickles[0]}: weights as a pickle run code when they are loaded, and are never read; have peft save it "
            f"as {WEIGHTS} where you trust it (safe_serialization=True)"
        )
    return read_header(path)


def _shape(tensors: Mapping[str, TensorEntry], name: str, folder: Path) -> tuple[int, ...]:
    if name not in tensors or len(tensors[name].shape) != 2:
        raise PolicyFilesError(f"{folder / WEIGHTS}: no matrix {name}, beside its other half; was it saved in full?")
    return tensors[name].shape


def _told_digest(folder: Path) -> str:
    with safe_open(folder / WEIGHTS, framework="numpy") as file:
        return (file.metadata() or {}).get(DIGEST, "")


def _of_another(folder: Path, differing: str, base: Path) -> PolicyFilesError:
    return PolicyFilesError(
        f"{folder / WEIGHTS}: an adapter of another policy than {base}: it has {differing}; give as policy.path the "
        "one it was trained on (of a run of ours: `dynframe export RUN BASE --base`)"
    )
