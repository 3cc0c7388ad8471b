"""Supervised fine-tuning: which conversations are learned from, and how many at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

from rl.config.errors import require, require_one_of

CONVERSATIONS = ("llava", "sharegpt4video", "pixmo")
TRACES = "dm_cot"  # retrieval traces, as the cold start learns from them
HELD_OUT_LOSS = "-held_out/nll"  # what the best checkpoint of a fine-tuning run is chosen by


@dataclass(frozen=True)
class ConversationSourceConfig:
    """An annotation file of a published form, and the images and videos that it names."""

    # llava (LLaVA-Video-178K and all of its form) | sharegpt4video | pixmo | dm_cot (retrieval traces); see
    # docs/finetuning.md
    format: str = "llava"
    # annotation file (JSON, JSON lines or Parquet), or the local copy of a data set's repository on the hub
    path: str = ""
    split: str = ""  # of a repository; empty: its only one
    subset: str = ""  # of a repository (its card's config_name); empty: its default, or only one
    media_root: str = ""  # folder that every image and video must lie under; empty: the annotation file's own
    rows: int = 0  # of the usable rows, so many are learned from, evenly spread; 0: all
    # of the usable rows, about so many are evaluated on and not learned from; nor is any other that shows their media
    held_out: int = 0
    question: str = ""  # what captions answer, of sharegpt4video and pixmo; empty: "Describe this video in detail."

    def __post_init__(self) -> None:
        require_one_of("finetune.sources.*.format", self.format, (*CONVERSATIONS, TRACES))


@dataclass(frozen=True)
class FinetuneConfig:
    """`dynframe finetune`: supervised training on images and videos; optimizer, steps and evaluations are those of the
    sections `learner` and `trainer`, frames of videos those of `video.coarse`."""

    sources: dict[str, ConversationSourceConfig] = field(default_factory=dict)  # by names that metrics have
    batch_size: int = 64  # conversations per optimizer step, over all ranks
    # of one conversation, blocks of images and videos included; longer ones are left out and counted
    max_tokens: int = 4096
    image_pixels: int = 602_112  # of an image at most, after resizing to a multiple of patch * merge
    num_workers: int = 2  # processes that read images and decode videos, a batch ahead of the learners

    def __post_init__(self) -> None:
        for key in ("batch_size", "max_tokens", "image_pixels", "num_workers"):
            require(getattr(self, key) >= 1, f"finetune.{key} must be >= 1, got {getattr(self, key)}")
