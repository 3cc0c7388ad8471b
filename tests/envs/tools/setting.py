"""Episodes in which tools are called: the tiny policy's processor with their tags, a clip, an environment."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from envs.env import RetrievalEnv, TokenBudget
from envs.initial_observation import CoarseFrameRules, make_initial_observation
from envs.prompts import PromptFormat, encode_reply
from envs.synthetic.clip import write_mp4
from envs.tools.rules import RetrievalRules
from envs.tools.toolbox import further_tags
from envs.tools.users import load_toolbox, load_tools
from envs.video.reader import VideoReader
from rl.config.policy import ScenesConfig
from rl.policy.processor import Processor
from rl.policy.tiny_tokenizer import train_tokenizer
from rl.trajectory import Completion
from tests.envs.setting import make_task

LENGTH = f"{Path(__file__).with_name('my_tools.py')}:Length"
TOOLS = ("span_fps", "zoom", LENGTH)
RULES = RetrievalRules(max_calls=3, max_frames=8, max_pixels=3136, tools=TOOLS, zoom_max_pixels=12544)
SIZE = 112  # pixels of the clip, of which coarse frames show 56


def processor_of(folder: Path, rules: RetrievalRules = RULES) -> Processor:
    """The tiny policy's, which knows the tags of the tools."""
    tags = further_tags(load_tools(rules))
    train_tokenizer(768, tool_tags=tags).save(str(folder / "tokenizer.json"))
    vision = {"patch_size": 14, "spatial_merge_size": 2, "tokens_per_second": 2}
    config = {"model_type": "qwen2_5_vl", "vision_config": vision, "text_config": {"vocab_size": 768}}
    (folder / "config.json").write_text(json.dumps(config))
    return Processor.from_pretrained(folder, ScenesConfig())


def quartered_clip(path: Path) -> Path:
    """Eight seconds at 10 fps; a picture whose upper left quarter is white from 4 s on, all else dark."""
    frames_THWC = np.full((80, SIZE, SIZE, 3), 40, dtype=np.uint8)
    frames_THWC[40:, : SIZE // 2, : SIZE // 2] = 230
    write_mp4(frames_THWC, 10, path)
    return path


@dataclass
class Episodes:
    """Makes environments of one clip, and completions as an engine would return them."""

    clip: Path
    processor: Processor
    reader: VideoReader

    def env(self, rules: RetrievalRules = RULES, max_new_tokens: int = 256, max_model_len: int = 1024) -> RetrievalEnv:
        """A fresh one, which has begun."""
        parts = {"processor": self.processor, "reader": self.reader}
        coarse = CoarseFrameRules(fps=1.0, min_frames=4, max_frames=8, max_pixels=3136)
        initial = make_initial_observation(make_task(self.clip), **parts, rules=coarse, form=PromptFormat())
        budget, tools = TokenBudget(max_new_tokens, max_model_len), load_toolbox(rules, self.processor)
        env = RetrievalEnv(make_task(self.clip), initial, **parts, rules=rules, budget=budget, tools=tools)
        env.reset()
        return env

    def said(self, text: str) -> Completion:
        """It stopped where it had to."""
        written, end = text.removesuffix("<|im_end|>"), (self.processor.ids.im_end,) * text.endswith("<|im_end|>")
        token_ids = (*encode_reply(written, self.processor, further_tags(load_tools(RULES))), *end)
        return Completion(token_ids, (-0.5,) * len(token_ids), "stop", policy_version=3)
