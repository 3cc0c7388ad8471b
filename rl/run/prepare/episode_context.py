"""The environment of a run, from the configuration's sections."""

from __future__ import annotations

from pathlib import Path

from envs.initial_observation import CoarseFrameRules
from envs.prompts import PromptFormat
from envs.retrieval import RetrievalRules
from envs.rollout import EpisodeContext
from envs.video.reader import VideoReader
from rl.config.data import VideoConfig
from rl.config.run import RunConfig
from rl.policy.processor import Processor
from rl.run.prepare.errors import as_config_error


@as_config_error()
def make_episode_context(config: RunConfig, policy_dir: Path) -> EpisodeContext:
    """The environment's parts, from a policy's folder and the configuration's sections.

    Raises:
        ConfigError: the policy's files cannot be used.
    """
    return episode_context(config, Processor.from_pretrained(policy_dir, config.policy.scenes))


def episode_context(config: RunConfig, processor: Processor) -> EpisodeContext:
    """The environment's parts, from the configuration's sections."""
    coarse, looks = config.video.coarse, config.retrieval
    return EpisodeContext(
        processor=processor,
        reader=make_reader(config.video),
        coarse=CoarseFrameRules(
            coarse.fps, coarse.min_frames, coarse.max_frames, coarse.max_pixels, coarse.max_visual_tokens
        ),
        retrieval=RetrievalRules(
            looks.max_calls, looks.min_window_s, looks.max_fps, looks.max_frames, looks.max_pixels, looks.min_fps
        ),
        max_model_len=config.rollout.engine.max_model_len,
        form=PromptFormat(config.prompt.system, config.prompt.instructions),
    )


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
