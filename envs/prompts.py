"""What the policy is given to read, as token ids put together from pieces; nothing is ever decoded and re-encoded.

    <|im_start|>user\n{coarse frames}\nquestion<|im_end|>\n<|im_start|>assistant\n

A policy made from a Thinking checkpoint finds its thought open: its prompts go on with `<think>\n`. That is context and
stands before all that such a policy wrote, wherever that is read as text.

A marker spelled in a question (`<|video_pad|>`, `<span>`) stays text: it is cut before encoding, so that the
tokenizer cannot take it for the token of that name.

Legend: T frames of a block · THWC pixels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from rl.trajectory import Frames

if TYPE_CHECKING:
    import numpy as np

OPENED_THOUGHT = "<think>\n"  # at the end of the prompt of a policy that finds its thought open
_VIDEO_PLACEHOLDER = "<video>"
_MARKER = re.compile(r"(?<=<)(?=[^\s<>]++>)")  # just after the `<` of anything that looks like a marker
_TAG = re.compile(r"(</?(?:think|span|fps|answer)>)")  # the tokens a policy writes


class TokenIds(Protocol):
    """Ids of the markers the environment reads or writes, as the tokenizer numbers them."""

    @property
    def im_start(self) -> int: ...
    @property
    def im_end(self) -> int: ...
    @property
    def fps_close(self) -> int: ...
    @property
    def vision_start(self) -> int: ...
    @property
    def vision_end(self) -> int: ...
    @property
    def video_pad(self) -> int: ...
    @property
    def image_pad(self) -> int: ...


class VideoProcessor(Protocol):
    """Between text, pixels and tokens: what the environment needs of rl.policy.processor.Processor."""

    @property
    def ids(self) -> TokenIds: ...
    @property
    def opens_thought(self) -> bool:
        """Whether the policy's prompts end within an open `<think>`."""

    def encode(self, text: str) -> list[int]:
        """Token ids; markers in the text become the tokens of that name."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text, markers included."""

    def fit(self, height: int, width: int, max_pixels: int) -> tuple[int, int]:
        """The frame size that is encoded: multiples of patch * merge, at most `max_pixels` where possible."""

    def make_frames(self, pixels_THWC: np.ndarray, timestamps_s: Sequence[float]) -> Frames:
        """Cut into scenes and name the content."""

    def video_block(self, frames: Frames) -> list[int]:
        """Ids from `<|vision_start|>` to `<|vision_end|>`; reads size, scene lengths and timestamps, not the pixels."""

    def visual_tokens(self, frames: Frames) -> int:
        """Placeholders in the block."""

    @property
    def image_frames(self) -> int:
        """Frames as which an image is shown: one scene."""


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """What is said around the question. A tiny policy needs nothing; a pretrained one is told the tags."""

    system: str = ""  # a system message before the user's
    instructions: str = ""  # after the question; here tags are meant as the tokens the policy shall write
    tags: tuple[str, ...] = ()  # of further tools, beside those that every policy has


def initial_prompt(
    question: str, coarse_frames: Frames, processor: VideoProcessor, form: PromptFormat
) -> tuple[int, ...]:
    """Token ids up to where the policy begins: the coarse video, then the question.

    A `<video>` placeholder at the head of the question is what the video replaces.
    """
    ids = processor.ids
    system = [ids.im_start, *processor.encode("system\n"), *encode_text(form.system, processor)] if form.system else []
    end = [ids.im_end, *processor.encode("\n")]
    asked = question.removeprefix(_VIDEO_PLACEHOLDER).strip()
    return (
        *(system + end if system else ()),
        *(ids.im_start, *processor.encode("user\n")),
        *processor.video_block(coarse_frames),
        *encode_text(f"\n{asked}", processor),
        *encode_reply(f"\n{form.instructions}" if form.instructions else "", processor, form.tags),
        *end,
        *(ids.im_start, *processor.encode("assistant\n")),
        *(encode_reply(OPENED_THOUGHT, processor) if processor.opens_thought else ()),
    )


def refusal_note(reason: str, processor: VideoProcessor, nothing: str = "no frames") -> tuple[int, ...]:
    """The plain-text observation that answers a call which cannot be granted.

    Args:
        nothing: what the policy did not get.
    """
    return inserted_text(f"[{nothing}: {reason}]", processor)


def inserted_text(text: str, processor: VideoProcessor) -> tuple[int, ...]:
    """Text that the environment inserts, on lines of its own."""
    return encode_text(f"\n{text}\n", processor)


def encode_text(text: str, processor: VideoProcessor) -> tuple[int, ...]:
    """Encode text from outside: whatever it spells, it yields no marker token. Linear in its length."""
    return tuple(token for piece in _MARKER.split(text) if piece for token in processor.encode(piece))


def encode_reply(text: str, processor: VideoProcessor, tags: Sequence[str] = ()) -> tuple[int, ...]:
    """Encode what a policy might have written: the tags are tokens, any other marker stays text.

    Args:
        tags: of further tools, beside those that every policy has.
    """
    pieces = (_with_tags(tuple(tags)) if tags else _TAG).split(text)  # text, tag, text, …
    return tuple(
        token
        for i, piece in enumerate(pieces)
        if piece
        for token in (processor.encode(piece) if i % 2 else encode_text(piece, processor))
    )


@lru_cache(maxsize=16)
def _with_tags(tags: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join([_TAG.pattern[:-1], *map(re.escape, tags)]) + ")")
