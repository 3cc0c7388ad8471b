"""What the environment's tests run in: a real processor of the tiny policy, and clips rendered on the spot."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from envs.video.reader import VideoReader
from rl.config.policy import ScenesConfig
from rl.policy.processor import Processor
from rl.policy.tiny_tokenizer import train_tokenizer
from rl.trajectory import AnswerKind, TimeSpan, VideoTask


def make_processor(folder: Path, scenes: ScenesConfig | None = None) -> Processor:
    """The tiny policy's processor, without its weights."""
    train_tokenizer(768).save(str(folder / "tokenizer.json"))
    vision = {"patch_size": 14, "spatial_merge_size": 2, "tokens_per_second": 2}
    config = {"model_type": "qwen2_5_vl", "vision_config": vision, "text_config": {"vocab_size": 768}}
    (folder / "config.json").write_text(json.dumps(config))
    return Processor.from_pretrained(folder, scenes or ScenesConfig())


def write_clip(path: Path, *, seconds: float = 8.0, fps: int = 10, size: int = 56) -> Path:
    """An mp4 whose frame n is grey, 8 levels brighter per frame (modulo 240), so that the shown frame can be told."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "1", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
        stream.codec_context.time_base = Fraction(1, fps)
        for number in range(round(seconds * fps)):
            image = np.full((size, size, 3), number * 8 % 240, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def make_task(clip: Path, question: str = "<video>\nWhat colour flashes?", task_id: str = "t") -> VideoTask:
    """A multiple-choice question about a clip."""
    return VideoTask(task_id, str(clip), question, "B", AnswerKind.LETTER, TimeSpan(2.0, 4.0), 4.0)


def make_reader() -> VideoReader:
    """The real reader, decoding in this process."""
    return VideoReader(workers=0)
