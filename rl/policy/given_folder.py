"""A folder that users give as a policy, stock or ours: looked at before anything of it is loaded. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl.policy.families import family_in, is_ours, read_config
from rl.policy.geometry import Geometry
from rl.policy.policy_folder import require_inert
from rl.policy.token_ids import PolicyFilesError
from rl.policy.tokenizer_file import tagged_tokenizer
from rl.policy.weight_files import read_weights


def require_usable(folder: Path) -> None:
    """Refuse a folder that cannot become a policy: every file that is read later is there, whole, and of this model.

    Raises:
        PolicyFilesError: names the file, the key or tensor, and what to do.
    """
    path = folder / "config.json"
    config = read_config(path)
    family_in(config, path)
    require_unquantised(config, path)
    require_inert(folder)
    read_weights(folder)
    Geometry.read(folder)  # a clock that is not told
    if not is_ours(config):
        tagged_tokenizer(folder, config)


def require_unquantised(config: Mapping[str, Any], path: Path) -> None:
    """Refuse a checkpoint whose weights are stored in fewer bits than they were trained in.

    Raises:
        PolicyFilesError: config.json says so.
    """
    text = config.get("text_config")
    quantised = config.get("quantization_config") or (isinstance(text, dict) and text.get("quantization_config"))
    if quantised:
        method = quantised.get("quant_method", "unnamed") if isinstance(quantised, dict) else "unnamed"
        raise PolicyFilesError(
            f"{path}: quantization_config ({method}): a quantised checkpoint cannot be trained; take the one in "
            f"bfloat16, such as {family_in(config, path).on_the_hub}"
        )
