"""Qwen's vocabulary, from a package of the registry that ships it: tokens by rank, made into a tokenizer.

The ranks of a tiktoken file decide everything: a token's two halves are what lower ranks make of its bytes, so the list
of merges that `tokenizers` needs follows from them. Splitting text and numbering added tokens are Qwen's.
"""

from __future__ import annotations

import base64
import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from rl.policy.tiny_tokenizer import qwen_splitting_bpe
from rl.policy.token_ids import PolicyFilesError

PACKAGE, RANKS = "dashscope", "resources/qwen.tiktoken"
NUM_RANKS = 151_643
SPECIAL = (  # numbered from NUM_RANKS on
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
ADDED = (  # what they hold is text like any other
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>"),
)
ADDED_LATER = {"qwen3_vl": ("<tool_response>", "</tool_response>", "<think>", "</think>")}


def qwen_tokenizer(model_type: str) -> Tokenizer:
    """The tokenizer of a family's checkpoints: 151,643 tokens and the family's added ones.

    Raises:
        PolicyFilesError: the package that ships the ranks is not installed; says which.
    """
    ranks = _read_ranks(_ranks_file())
    spelling = bytes_to_unicode()

    def spelt(token: bytes) -> str:
        return "".join(spelling[byte] for byte in token)

    vocabulary = {spelt(token): rank for token, rank in ranks.items()}
    halves = (_halves(token, ranks) for token in ranks)
    merges = [(spelt(pair[0]), spelt(pair[1])) for pair in halves if pair is not None]
    tokenizer = qwen_splitting_bpe(vocabulary, merges)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    added = (*ADDED, *ADDED_LATER.get(model_type, ()))
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    return tokenizer


def _ranks_file() -> Path:
    found = importlib.util.find_spec(PACKAGE)  # found, not imported
    path = Path(found.submodule_search_locations[0]) / RANKS if found and found.submodule_search_locations else None
    if path is None or not path.is_file():
        raise PolicyFilesError(
            f"Qwen's vocabulary is shipped by the package {PACKAGE}, which is not installed: "
            f"`pip install --no-deps {PACKAGE}`; or take the project's own small vocabulary with --vocabulary tiny"
        )
    return path


def _read_ranks(path: Path) -> dict[bytes, int]:
    try:
        lines = (line.split() for line in path.read_bytes().splitlines() if line)
        ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    except ValueError as error:
        raise PolicyFilesError(f"{path}: not a list of tokens and ranks ({error})") from error
    if sorted(ranks.values()) != list(range(NUM_RANKS)):
        raise PolicyFilesError(f"{path}: {len(ranks)} tokens, Qwen's vocabulary has {NUM_RANKS}")
    return ranks


def _halves(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two tokens that a token is merged from; None for a single byte."""
    splits = [(token[:place], token[place:]) for place in range(1, len(token))]
    known = [split for split in splits if split[0] in ranks and split[1] in ranks]
    if len(known) < 2:
        return known[0] if known else None
    parts = [token[place : place + 1] for place in range(len(token))]
    while len(parts) > 2:
        lowest = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], math.inf))
        parts[lowest : lowest + 2] = [parts[lowest] + parts[lowest + 1]]
    return parts[0], parts[1]
