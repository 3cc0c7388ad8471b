"""The environment of a run, from the configuration's sections."""

from __future__ import annotations

from pathlib import Path

from envs.initial_observation import CoarseFrameRules
from envs.prompts import PromptFormat
from envs.rollout import EpisodeContext
from envs.tools.rules import RetrievalRules
from envs.tools.toolbox import further_tags
from envs.tools.users import load_toolbox, load_tools
from envs.video.reader import VideoReader
from rl.config.data import VideoConfig
from rl.config.run import RunConfig
from rl.policy.processor import Processor
from rl.run.prepare.errors import as_config_error
from rl.trajectory import SPAN_FPS


@as_config_error()
def make_episode_context(config: RunConfig, policy_dir: Path) -> EpisodeContext:
    """The environment's parts, from a policy's folder and the configuration's sections.

    Raises:
        ConfigError: the policy's files cannot be used.
    """
    return episode_context(config, Processor.from_pretrained(policy_dir, config.policy.scenes))


def episode_context(config: RunConfig, processor: Processor) -> EpisodeContext:
    """The environment's parts, from the configuration's sections."""
    coarse, rules = config.video.coarse, retrieval_rules(config)
    tools = load_toolbox(rules, processor)
    return EpisodeContext(
        processor=processor,
        reader=make_reader(config.video),
        coarse=CoarseFrameRules(
            coarse.fps, coarse.min_frames, coarse.max_frames, coarse.max_pixels, coarse.max_visual_tokens
        ),
        retrieval=rules,
        max_model_len=config.rollout.engine.max_model_len,
        form=PromptFormat(config.prompt.system, config.prompt.instructions, further_tags(tools.enabled)),
        tools=tools,
    )


def retrieval_rules(config: RunConfig) -> RetrievalRules:
    """What the policy may ask for, from its section."""
    looks = config.retrieval
    return RetrievalRules(
        looks.max_calls,
        looks.min_window_s,
        looks.max_fps,
        looks.max_frames,
        looks.max_pixels,
        looks.min_fps,
        tuple(looks.tools),
        looks.zoom_max_pixels,
        looks.tool_timeout_s,
    )


@as_config_error()
def tool_tags(config: RunConfig) -> tuple[str, ...]:
    """The tags that the tools of a run are written with, beside those that every policy has.

    Raises:
        ConfigError: there is no such tool, or it cannot be used.
    """
    if all(name == SPAN_FPS for name in config.retrieval.tools):
        return ()
    return further_tags(load_tools(retrieval_rules(config)))


def make_reader(video: VideoConfig) -> VideoReader:
    """A video reader, from its section."""
    return VideoReader(
        backend=video.backend,
        timeout_s=video.decode_timeout_s,
        workers=video.decode_workers,
        frame_cache_bytes=video.frame_cache_bytes,
        memory_mib=video.decode_memory_mib,
        stall_timeout_s=video.decode_stall_timeout_s,
        frame_cache_disk_bytes=video.frame_cache_disk_bytes,
    )
