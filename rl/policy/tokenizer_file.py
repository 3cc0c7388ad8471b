"""A policy folder's tokenizer: read, found to be its checkpoint's own, and the project's tags added to it. No torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from rl.policy.families import family_in
from rl.policy.policy_folder import OPTIONAL_FILES, TOKENIZER_FILES, require_model_ids
from rl.policy.token_ids import TAG_TOKENS, TOKEN_TEXT, PolicyFilesError, TokenIds

COPIED = (*TOKENIZER_FILES, *OPTIONAL_FILES, "generation_config.json")  # of a stock folder, beside its weights


def read_tokenizer(folder: Path) -> Tokenizer:
    """A folder's tokenizer.json.

    Raises:
        PolicyFilesError: there is none, or it cannot be read.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise PolicyFilesError(f"{path}: no such file; a policy folder needs tokenizer.json")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower class
        raise PolicyFilesError(f"{path}: not a tokenizer ({error})"[:500]) from error


def tagged_tokenizer(
    folder: Path, config: Mapping[str, Any], tool_tags: Sequence[str] = ()
) -> tuple[Tokenizer, list[int]]:
    """The tokenizer of a stock folder with every tag as a single token, and the ids of those that it did not have.

    Args:
        config: the folder's config.json.
        tool_tags: of tools beside `span_fps`.
    Raises:
        PolicyFilesError: no tokenizer, or another model's: without the tokens that vision needs, larger than the
            embedding, or with other ids than config.json has.
    """
    tokenizer, path = read_tokenizer(folder), folder / "tokenizer.json"
    remedy = f"copy tokenizer.json and tokenizer_config.json from {family_in(config, path).on_the_hub}"
    needed = [text for text in TOKEN_TEXT.values() if text not in TAG_TOKENS]
    if lacking := [text for text in needed if tokenizer.token_to_id(text) is None]:
        raise PolicyFilesError(f"{path}: has no {', '.join(lacking)}: another model's tokenizer; {remedy}")
    rows, tokens = config.get("text_config", config).get("vocab_size", 0), tokenizer.get_vocab_size()
    if tokens > rows:
        raise PolicyFilesError(
            f"{path}: {tokens} tokens, the embedding has {rows} rows (vocab_size in config.json): another model's "
            f"tokenizer; {remedy}"
        )
    absent = [text for text in (*TAG_TOKENS, *tool_tags) if tokenizer.token_to_id(text) is None]
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in absent])
    require_model_ids(folder, TokenIds.of(tokenizer))
    return tokenizer, [tokenizer.token_to_id(text) for text in absent]


def write_tokenizer(source: Path, folder: Path, tokenizer: Tokenizer) -> None:
    """The tokenizer's files of a stock folder, with the tags; the other small files as they are."""
    for name in COPIED:
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
