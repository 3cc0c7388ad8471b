"""A policy's folder: what it may hold, that nothing in it runs code, and the scene parameters it was made for.

A policy folder is an ordinary Hugging Face folder. Its config.json says a `model_type` of ours (rl.policy.families; up
to version 0.3.0 the stock one), `architectures` (the name under which the engine's plugin registers) and
`vision_config.flexivideo`: every field of ScenesConfig that acts, plus `fingerprint`. Weights carry the stock names
(`model.visual.`, `model.language_model.`, `lm_head.`) except the patch embedding's: `model.visual.patch_embed.weight`
of shape (C, 3, init_frames, p, p) stands for `model.visual.patch_embed.proj.weight`, and `.bias` likewise; in `fixed`
mode the kernel has 2 frames. With `difference: features` there is `scene_features.npz`, too (rl.policy.scene_features).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl.config.policy import ScenesConfig
from rl.policy.families import FAMILIES, read_config
from rl.policy.scene_features import FEATURE_FILE
from rl.policy.scenes import fingerprint
from rl.policy.token_ids import TOKEN_TEXT, PolicyFilesError, TokenIds
from rl.policy.weight_files import INDEX, read_header, read_index

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

READ_BY_US = {family.own_model_type for family in FAMILIES.values()}  # code beside such a config.json is for others
MODEL_IDS = {  # keys of config.json, and what the tokenizer must number alike
    "video_token_id": "video_pad",
    "image_token_id": "image_pad",
    "vision_start_token_id": "vision_start",
    "vision_end_token_id": "vision_end",
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")  # weights in them run code when they are loaded
OPTIONAL_FILES = (
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    FEATURE_FILE,
)


def require_inert(folder: Path) -> None:
    """Refuse a policy's folder that could run code in whoever loads it: weights as pickles, or code named in its files.

    Nothing of ours would run either; this says so before an engine and a learner start, and what to do instead.

    Raises:
        PolicyFilesError: names the file.
    """
    weights = sorted(folder.glob("*.safetensors"))
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
    if pickles and not weights:
        raise PolicyFilesError(
            f"{folder / pickles[0]}: weights as a pickle run code when they are loaded, and are never read; convert "
            "them to *.safetensors where you trust them (transformers: save_pretrained)"
        )
    for path in weights:
        read_header(path)
    for name in ("config.json", "tokenizer_config.json"):
        found = _json_object(folder / name)
        if "auto_map" in found and found.get("model_type") not in READ_BY_US:
            raise PolicyFilesError(
                f"{folder / name}: names code of its own (auto_map), which is never run here; remove that key if the "
                "checkpoint needs none of it"
            )
    if (folder / INDEX).is_file():
        read_index(folder / INDEX)


def _json_object(path: Path) -> dict[str, Any]:
    """A file of the folder that may be absent; what cannot be read is for its reader to refuse."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def require_model_ids(folder: Path, ids: TokenIds) -> None:
    """Refuse a folder whose model looks for its video at other ids than the tokenizer writes.

    Raises:
        PolicyFilesError: config.json and tokenizer.json disagree.
    """
    declared = read_config(folder / "config.json")
    for key, name in MODEL_IDS.items():
        if declared.get(key) not in (None, getattr(ids, name)):
            raise PolicyFilesError(
                f"{folder}: config.json has {key}={declared[key]}, tokenizer.json numbers {TOKEN_TEXT[name]} "
                f"{getattr(ids, name)}: they are of different checkpoints"
            )


def scenes_of(config: PreTrainedConfig) -> ScenesConfig:
    """The scene parameters a checkpoint was made for.

    Raises:
        PolicyFilesError: a stock checkpoint.
    """
    stored = getattr(config.vision_config, "flexivideo", None)
    if not stored:
        raise PolicyFilesError(
            "config.json has no vision_config.flexivideo: a stock checkpoint; convert it with convert_stock_checkpoint"
        )
    return scenes_in(stored)


def scenes_in(section: Mapping[str, Any]) -> ScenesConfig:
    """The scene parameters that a config.json keeps under vision_config.flexivideo."""
    return ScenesConfig(**{name: value for name, value in section.items() if name != "fingerprint"})


def flexivideo_section(scenes: ScenesConfig) -> dict[str, object]:
    """What config.json keeps under vision_config.flexivideo."""
    return {**scenes.acting, "fingerprint": fingerprint(scenes)}


def require_scenes(config: PreTrainedConfig, scenes: ScenesConfig, folder: str | Path) -> None:
    """Refuse a checkpoint made for other scene parameters.

    Raises:
        PolicyFilesError: names what differs.
    """
    stored = scenes_of(config)
    recorded = config.vision_config.flexivideo.get("fingerprint")
    if fingerprint(stored) != recorded:
        raise PolicyFilesError(f"{folder}: made by another version of the encoder (fingerprint {recorded})")
    ours, theirs = asdict(scenes), asdict(stored)
    differing = [f"{name}={theirs[name]!r} (asked {ours[name]!r})" for name in ours if ours[name] != theirs[name]]
    if differing:
        raise PolicyFilesError(f"{folder}: made for other policy.scenes: {', '.join(differing)}")
