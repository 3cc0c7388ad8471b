"""The tokens the protocol speaks in, and their ids in a policy's tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, fields

from tokenizers import Tokenizer

TOKEN_TEXT = {
    "span_open": "<span>",
    "span_close": "</span>",
    "fps_open": "<fps>",
    "fps_close": "</fps>",
    "think_open": "<think>",
    "think_close": "</think>",
    "answer_open": "<answer>",
    "answer_close": "</answer>",
    "im_start": "<|im_start|>",
    "im_end": "<|im_end|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
    "video_pad": "<|video_pad|>",
    "image_pad": "<|image_pad|>",
    "pad": "<|endoftext|>",
}
TAG_TOKENS = tuple(text for name, text in TOKEN_TEXT.items() if name.endswith(("_open", "_close")))
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")


class PolicyFilesError(ValueError):
    """The policy's folder cannot be used; the message names file and remedy."""


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Ids of the tokens the protocol speaks in."""

    span_open: int
    span_close: int
    fps_open: int
    fps_close: int
    think_open: int
    think_close: int
    answer_open: int
    answer_close: int
    im_start: int
    im_end: int
    vision_start: int
    vision_end: int
    video_pad: int
    image_pad: int
    pad: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> TokenIds:
        """Look every token up.

        Raises:
            PolicyFilesError: some are missing; a stock checkpoint has to be converted first.
        """
        ids = {field.name: tokenizer.token_to_id(TOKEN_TEXT[field.name]) for field in fields(cls)}
        missing = [TOKEN_TEXT[name] for name, token_id in ids.items() if token_id is None]
        if missing:
            raise PolicyFilesError(
                f"the tokenizer lacks {', '.join(missing)}: convert the checkpoint with "
                "rl.policy.convert.convert_stock_checkpoint"
            )
        return cls(**ids)
