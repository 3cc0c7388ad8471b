"""What the learner's benchmarks work on: policies of published widths with random weights, trajectories of real size.

Legend: T frames.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from rl.config.policy import PolicyConfig, ScenesConfig
from rl.policy.families import QWEN2_5_VL, QWEN3_VL
from rl.policy.model import ATTENTION, VideoPolicy, policy_class
from rl.policy.patch_embed import make_patch_embed
from rl.policy.policy_folder import flexivideo_section
from rl.policy.processor import Processor
from rl.policy.sizes import PublishedSize, TextSize, VisionSize, published_size
from rl.policy.stock.hub_files import model_config
from rl.policy.structure import Structure, kernel_frames, read_structure
from rl.policy.tiny_tokenizer import train_tokenizer
from rl.trajectory import Frames, Segment, TrainingSample

SCENES = {"fixed": ScenesConfig(mode="fixed"), "dynamic": ScenesConfig(mode="dynamic")}
VOCABULARY = 768  # of the tokenizer trained on the spot: Qwen's own is not on every machine
TINY = {  # for machines that are only to show that the program runs
    "qwen2_5_vl": PublishedSize(
        QWEN2_5_VL,
        "tiny",
        "tiny",
        "none",
        TextSize(2, 256, 512, 2, 1, 1024, is_tied=True),
        VisionSize(2, 64, 128, 2, (1,)),
    ),
    "qwen3_vl": PublishedSize(
        QWEN3_VL,
        "tiny",
        "tiny",
        "none",
        TextSize(2, 256, 512, 2, 1, 1024, is_tied=True),
        VisionSize(3, 64, 128, 2, deepstack=(0, 1)),
    ),
}


@dataclass(frozen=True, slots=True)
class Block:
    """A video block before the family has fitted its frames."""

    frames: int  # T
    height: int  # pixels
    width: int


COARSE, LOOK = Block(64, 252, 364), Block(60, 364, 504)  # as the shipped configurations show them
SMALL_COARSE, SMALL_LOOK = Block(8, 84, 140), Block(6, 112, 140)
SHORT = Block(4, 56, 84)  # where only the number of micro-batches counts


def size_of(name: str) -> PublishedSize:
    """The size that `FAMILY/SIZE` names, such as qwen2_5_vl/3b; SIZE may be `tiny`."""
    family, _, size = name.partition("/")
    return TINY[family] if size == "tiny" and family in TINY else published_size(family, size)


class Work:
    """The files of a policy of one size, and what is made from them.

    Args:
        folder: empty; gets config.json and tokenizer.json.
        coarse, look: the video blocks of every trajectory.
        question, sampled: tokens after the coarse frames, and those that the policy writes, half before the look.
    """

    def __init__(
        self,
        size: PublishedSize,
        folder: Path,
        coarse: Block = COARSE,
        look: Block = LOOK,
        question: int = 80,
        sampled: int = 300,
    ) -> None:
        self.size, self.coarse, self.look = size, coarse, look
        self.question, self.sampled = question, sampled
        self._folder = folder
        tokenizer = train_tokenizer(VOCABULARY)
        config = model_config(size, tokenizer.get_vocab())
        config["vision_config"]["flexivideo"] = flexivideo_section(SCENES["fixed"])
        (folder / "config.json").write_text(json.dumps(config))
        tokenizer.save(str(folder / "tokenizer.json"))
        self._processors = {mode: Processor.from_pretrained(folder, scenes) for mode, scenes in SCENES.items()}

    def processor(self, mode: str = "fixed") -> Processor:
        """The processor that cuts scenes in this mode."""
        return self._processors[mode]

    def config(self) -> PreTrainedConfig:
        """Its config.json, as transformers reads it."""
        return AutoConfig.from_pretrained(self._folder)

    def structure(self, mode: str = "fixed") -> Structure:
        """Its parts and their sizes, with the patch embedding of this mode."""
        path = self._folder / "config.json"
        frames = kernel_frames(PolicyConfig(scenes=SCENES[mode]))
        return read_structure(json.loads(path.read_text()), str(path), init_frames=frames)

    def policy(self, device: torch.device | str, dtype: torch.dtype = torch.bfloat16) -> VideoPolicy:
        """A policy with random weights, made where it will be: on the meta device without weights."""
        torch.manual_seed(0)
        with torch.device(device):
            made = policy_class(self.size.family)._from_config(
                self.config(), dtype=dtype, attn_implementation=ATTENTION
            )
        self._draw_kernel(made.model.visual.patch_embed)
        return made

    def show_scenes(self, policy: VideoPolicy, mode: str) -> None:
        """Give a policy whose tower is frozen the patch embedding of another mode."""
        visual, vision = policy.model.visual, policy.config.vision_config
        weight = visual.patch_embed.weight
        with torch.device(weight.device):
            embed = make_patch_embed(vision.hidden_size, vision.patch_size, SCENES[mode], self.size.family)
        self._draw_kernel(embed)
        visual.patch_embed = embed.to(weight.dtype).requires_grad_(False)

    def _draw_kernel(self, embed: nn.Module) -> None:
        """Transformers draws random weights for its own modules only."""
        nn.init.normal_(embed.weight, std=0.02)

    def frames(self, block: Block, seed: int, mode: str = "fixed", run: int = 1) -> Frames:
        """Noise, cut into scenes.

        Args:
            run: so many frames in a row are equal: scenes of `dynamic`.
        """
        processor, rng = self.processor(mode), np.random.default_rng(seed)
        height, width = processor.fit(block.height, block.width, block.height * block.width)
        distinct = rng.integers(0, 256, (-(-block.frames // run), height, width, 3), dtype=np.uint8)
        return processor.make_frames(distinct.repeat(run, axis=0)[: block.frames], [i / 2 for i in range(block.frames)])

    def group(self, siblings: int, mode: str = "fixed", run: int = 1) -> list[TrainingSample]:
        """Trajectories that share their coarse frames; each looks elsewhere."""
        opening = self.frames(self.coarse, 0, mode, run)
        return [
            self._trajectory(opening, self.frames(self.look, 1 + seed, mode, run), seed, mode)
            for seed in range(siblings)
        ]

    def _trajectory(self, opening: Frames, look: Frames, seed: int, mode: str) -> TrainingSample:
        processor, rng = self.processor(mode), np.random.default_rng(seed)
        letters = len("abcdefghijklmnopqrstuvwxyz")

        def text(count: int) -> list[int]:
            return rng.integers(0, letters, count).tolist()

        pieces = (
            (processor.video_block(opening) + text(self.question), Segment.CONTEXT),
            (text(self.sampled // 2), Segment.SAMPLING),
            (processor.video_block(look), Segment.CONTEXT),
            (text(self.sampled - self.sampled // 2), Segment.REASONING),
        )
        segments = tuple(int(segment) for tokens, segment in pieces for _ in tokens)
        learned = tuple(segment != Segment.CONTEXT for segment in segments)
        credit = dict(enumerate([0.0, *rng.standard_normal(2)]))  # by segment
        return TrainingSample(
            token_ids=tuple(token for tokens, _ in pieces for token in tokens),
            segment_ids=segments,
            turn_ids=segments,
            behavior_logprobs=tuple(-6.5 * mine for mine in learned),
            advantages=tuple(float(credit[segment]) for segment in segments),
            loss_mask=learned,
            policy_versions=tuple(0 if mine else -1 for mine in learned),
            videos=(opening, look),
        )


def tokens_of(samples: Sequence[TrainingSample]) -> int:
    """Tokens of all trajectories."""
    return sum(len(sample.token_ids) for sample in samples)
