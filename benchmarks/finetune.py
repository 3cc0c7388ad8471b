"""Fine-tuning's tokens per CPU second: one conversation a pass, packed by tokens, and packed with shared beginnings.

    OMP_NUM_THREADS=1 python benchmarks/finetune.py [--examples 64] [--micro-tokens 2048] [--repeats 3]

Images with a caption of 20 to 120 words, and clips with two questions each, as LLaVA-Video-178K has them: rows of their
own on the same clip. They are encoded as `dynframe finetune` does, and learned from by one rank on the CPU with the
quickstart's policy; the ways in turn, so that a busy machine slows all of them. "Padding" is the share of the tokens
computed that no sample has; "if padded" is what it would be in batches of 16 rows as long as their longest. "Prefix" is
the share of all tokens that is not computed since another conversation begins alike.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
from PIL import Image
from tables import median_and_range, print_conditions, print_table

from actors.worker.ports import reserve_port
from envs.data.conversation_rows import Conversation, Media, MediaKind, Message
from envs.data.conversations import ImageRules, conversation_sample
from envs.initial_observation import CoarseFrameRules
from envs.rollout import EpisodeContext
from envs.tools.rules import RetrievalRules
from envs.video.reader import VideoReader
from rl.config.algorithm import AlgorithmConfig, LossConfig
from rl.config.learner import LearnerConfig
from rl.config.policy import PolicyConfig, ScenesConfig, TinyPolicyConfig
from rl.learner.learner import Learner
from rl.policy.processor import Processor
from rl.policy.scenes import image_frames
from rl.policy.tiny import build_tiny_policy
from rl.trajectory import TrainingSample

PIXELS, ROWS = 112 * 112, 16  # of a frame at most; of a batch that would be padded
WORDS = ("a", "red", "field", "with", "two", "birds", "near", "the", "old", "house", "that", "moves", "slowly", "left")


def main() -> None:
    """A row per way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--micro-tokens", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print_conditions("torch", "deepspeed", repeats=options.repeats)
    packed = {"micro_batch": options.examples, "micro_tokens": options.micro_tokens}
    ways = {
        "one a pass": {"micro_batch": 1, "micro_tokens": 0, "shared_prefix": "off"},
        "packed": packed | {"shared_prefix": "off"},
        "packed, shared": packed | {"shared_prefix": "auto"},
    }
    with tempfile.TemporaryDirectory() as folder:
        policy_dir = build_tiny_policy(TinyPolicyConfig(), ScenesConfig(), Path(folder) / "policy", seed=0)
        samples = _samples(Path(folder), policy_dir, options.examples)
        lengths = [len(sample.token_ids) for sample in samples]
        print(f"{len(samples)} conversations of {min(lengths)} to {max(lengths)} tokens, {sum(lengths):,} in all\n")
        learner = _learner(policy_dir)
        learner.supervise(samples)  # what is allocated once
        found = [{name: _learned(learner, way, samples) for name, way in ways.items()} for _ in range(options.repeats)]
        learner.close()
        headings = ("way", "tokens/CPU s", "x one a pass", "passes", "padding", "if padded", "prefix", "tower passes")
        print_table(headings, (_row(name, found, lengths) for name in ways))


def _row(name: str, found: Sequence[dict[str, tuple[float, dict[str, float]]]], lengths: Sequence[int]) -> tuple:
    speeds = [sum(lengths) / each[name][0] for each in found]
    gains = [each["one a pass"][0] / each[name][0] for each in found]
    numbers = found[0][name][1]
    batches = [lengths[first : first + ROWS] for first in range(0, len(lengths), ROWS)]
    padded = 1 - sum(lengths) / sum(len(batch) * max(batch) for batch in batches)
    shares = (numbers["update/padding_share"], padded, numbers["update/shared_prefix_share"])
    told = (*(f"{share:.1%}" for share in shares), f"{numbers['update/tower_passes_per_block']:.2f}")
    speed, gain = median_and_range(speeds, ".0f"), median_and_range(gains, ".2f")
    return name, speed, gain, f"{numbers['update/micro_batches']:.0f}", *told


def _learner(policy_dir: Path) -> Learner:
    with reserve_port() as port:
        return Learner(
            policy_dir,
            policy=PolicyConfig(),
            learner=LearnerConfig(activation_checkpointing="none"),
            algorithm=AlgorithmConfig(loss=LossConfig(kl_beta=0.0)),
            temperature=1.0,
            total_steps=1000,
            master_port=port.getsockname()[1],
        )


def _learned(learner: Learner, way: dict, samples: Sequence[TrainingSample]) -> tuple[float, dict[str, float]]:
    """CPU seconds of a step, and its numbers. One process can have one DeepSpeed engine: only how it cuts changes."""
    learner._config = replace(learner._config, **way)
    start = time.process_time()
    numbers = learner.supervise(samples)
    return time.process_time() - start, numbers


def _samples(folder: Path, policy_dir: Path, count: int) -> list[TrainingSample]:
    """Half of them images with a caption, the others two questions each about a clip."""
    random = np.random.default_rng(0)
    processor = Processor.from_pretrained(policy_dir, ScenesConfig())
    conversations = [_about_image(folder / f"{n}.png", random, n) for n in range(count // 2)]
    for number in range((count - len(conversations) + 1) // 2):
        conversations += _about_clip(folder / f"{number}.mp4", random, number)
    coarse = CoarseFrameRules(fps=2.0, min_frames=4, max_frames=8, max_pixels=PIXELS)
    with VideoReader(workers=0) as reader:
        context = EpisodeContext(processor, reader, coarse, RetrievalRules(), max_model_len=4096)
        images = ImageRules(image_frames(processor.scenes), 4 * PIXELS)
        made = [conversation_sample(one, context, images) for one in conversations[:count]]
    return [made[place] for place in random.permutation(len(made))]


def _about_image(path: Path, random: np.random.Generator, number: int) -> Conversation:
    Image.fromarray(random.integers(0, 256, (224, 224, 3), dtype=np.uint8)).save(path)
    said = " ".join(random.choice(WORDS, random.integers(20, 121)))
    question = Message("user", (Media(MediaKind.IMAGE, str(path)), "\nDescribe this image in detail."))
    return Conversation(f"image {number}", (question, Message("assistant", (said,))))


def _about_clip(path: Path, random: np.random.Generator, number: int) -> list[Conversation]:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 112, 112, "yuv420p"
        for _ in range(16):
            pixels = random.integers(0, 256, (112, 112, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    question = Message("user", (Media(MediaKind.VIDEO, str(path)), "\nWhat happens in this clip?"))
    replies = (" ".join(random.choice(WORDS, random.integers(5, 41))) for _ in range(2))
    return [Conversation(f"clip {number}", (question, Message("assistant", (said,)))) for said in replies]


if __name__ == "__main__":
    main()
