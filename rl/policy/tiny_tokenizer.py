"""The tokenizer of the policy the project builds itself, trained on the spot. No torch: checks need it alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from rl.config.policy import ScenesConfig, TinyPolicyConfig
from rl.policy.families import FAMILIES
from rl.policy.geometry import Geometry, padded_vocab
from rl.policy.processor import Processor
from rl.policy.token_ids import TAG_TOKENS

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
QWEN_PIECES = (  # how Qwen2.5 splits text: digits one by one
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TINY_GEOMETRY = {  # patch, merge and clock rate of each family, as its checkpoints have them
    "qwen2_5_vl": (14, 2, 2),
    "qwen3_vl": (16, 2, 0),
}


def tiny_processor(
    config: TinyPolicyConfig, scenes: ScenesConfig, folder: Path, tool_tags: Sequence[str] = ()
) -> Processor:
    """What the policy in `folder` will be processed with, before it is built."""
    return Processor(train_tokenizer(config.vocab_size, tool_tags=tool_tags), tiny_geometry(config), scenes, folder)


def tiny_geometry(config: TinyPolicyConfig) -> Geometry:
    """What of its config.json will shape tokens."""
    return Geometry(*TINY_GEOMETRY[config.family], padded_vocab(config.vocab_size), FAMILIES[config.family])


def train_tokenizer(vocab_size: int, *, tags: bool = True, tool_tags: Sequence[str] = ()) -> Tokenizer:
    """A byte-level BPE that splits text as Qwen2.5 does, trained on sentences of the kind the policy reads and writes.

    Args:
        vocab_size: of the model; the tokenizer, special tokens and tags included, stays within it.
        tags: add `<span>` and the other tags as single, non-special tokens.
        tool_tags: of further tools, likewise.
    """
    added = (*(TAG_TOKENS if tags else ()), *tool_tags)
    tokenizer = qwen_splitting_bpe()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS) - len(TAG_TOKENS) - len(tool_tags),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS])
    if added:
        tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    return tokenizer


def qwen_splitting_bpe(
    vocabulary: dict[str, int] | None = None, merges: list[tuple[str, str]] | None = None
) -> Tokenizer:
    """A byte-level BPE that normalises and splits text as Qwen2.5 does; without a vocabulary, one to be trained."""
    tokenizer = Tokenizer(models.BPE(vocabulary, merges) if vocabulary else models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_PIECES), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _corpus() -> list[str]:
    colours = [
        "red",
        "green",
        "blue",
        "yellow",
        "white",
        "black",
        "orange",
        "purple",
        "cyan",
        "magenta",
        "grey",
        "pink",
    ]
    shapes = ["square", "circle", "triangle", "bar", "dot", "cross", "star", "ring", "ball", "box"]
    numbers = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    lines = [
        "You are a helpful assistant. You watch videos and answer questions about them.",
        "system user assistant",
        "Look at the video, decide which time window to look at again and at which frame rate, then answer.",
        "If the frames do not show the detail, ask for more frames of the right window at a sufficient frame rate.",
        "Answer with the letter of the right option. Choose one of the following options.",
        "Write the start and the end of the moment in seconds. When does it happen? How many times?",
        "First think, then call for frames between the start and the end of the window, then answer the question.",
        "The requested window is empty, reversed, malformed or outside of the clip; no frames can be given.",
        "The call could not be read: the span must be two numbers in seconds, the start before the end.",
        "No more calls are allowed: answer now with what you have seen. The clip lasts for seconds.",
        "I look between and the end. It changes in the middle. I see that the event happens near the beginning.",
        "So the answer is the first, the second, the third, the last. The person opens the door and sits down.",
        "What is the order of the colours? Which colour is shown? Which shape appears? Where does it move?",
        "what happens when the frame bar is filled during the event window while the border is shown?",
    ]
    lines += [
        f"Which colour does the {shape} have while the window is marked? It is {c}."
        for shape in shapes
        for c in colours
    ]
    lines += [
        f"A. {c} B. {d} C. {e} D. {f}"
        for c, d, e, f in zip(colours, colours[1:], colours[2:], colours[3:], strict=False)
    ]
    lines += [f"(A) {n} (B) {m}. The {shape} flashes {n} times." for n, m in pairwise(numbers) for shape in shapes]
    lines += [f"<{i / 2:.1f} seconds> {i / 2:.1f} - {i / 2 + 3:.1f}" for i in range(40)]
    lines += [f"Question: how many flashes? Options:\nA. {n}\nB. {m}\nAnswer:" for n in numbers for m in numbers]
    return lines
