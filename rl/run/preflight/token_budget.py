"""Whether the longest trajectory there can be fits the engine's context. Part of the composition root."""

from __future__ import annotations

import math
from collections.abc import Sequence

from envs.initial_observation import coarse_frame_times, fit_visual_tokens, unseen_frames
from envs.prompts import initial_prompt
from envs.rollout import EpisodeContext
from rl.config.data import SPAN_FPS, ZOOM
from rl.config.run import RunConfig
from rl.run.preflight.findings import Finding, Level
from rl.trajectory import VideoTask

MAX_VIDEOS = 200  # whose token counts are looked at


def check_token_budget(config: RunConfig, context: EpisodeContext, tasks: Sequence[VideoTask]) -> Finding:
    """The longest trajectory there can be, if every frame is a scene of its own."""
    if not tasks:
        return Finding("token budget", Level.NOTE, "not checked: it needs tasks")
    question = max((task.question for task in tasks), key=len)
    videos = sorted({task.video_path for task in tasks})
    seen = videos[:: math.ceil(len(videos) / MAX_VIDEOS)]
    initial = max(_initial_tokens(context, path, question) for path in seen)
    look = max(_call_tokens(context, path) for path in seen)
    sampled, limit = config.rollout.max_new_tokens, config.rollout.engine.max_model_len
    needed = initial + config.retrieval.max_calls * look + sampled
    detail = (
        f"initial prompt up to {initial}, a look up to {look}, sampled {sampled}: {needed} of "
        f"rollout.engine.max_model_len={limit} ({len(seen)} of {len(videos)} videos looked at)"
    )
    if initial + sampled > limit:
        return Finding(
            "token budget", Level.FAILED, f"{detail}; raise it, or lower video.coarse.max_frames or max_pixels"
        )
    if needed > limit:
        return Finding("token budget", Level.NOTE, f"{detail}; the widest looks will get fewer frames")
    return Finding("token budget", Level.OK, detail)


def _initial_tokens(context: EpisodeContext, video_path: str, question: str) -> int:
    clip, processor, rules = (
        context.reader.describe(video_path),
        context.processor,
        context.coarse,
    )
    times_s_T = coarse_frame_times(clip.duration_s, clip.native_fps, rules)
    frames = unseen_frames(*fit_visual_tokens(times_s_T, clip, processor, rules))
    return len(initial_prompt(question, frames, processor, context.form))


def _call_tokens(context: EpisodeContext, video_path: str) -> int:
    """Of the dearest call of a built-in tool; what users' tools insert is not known before they are called."""
    rules, processor = context.retrieval, context.processor
    tokens = [_look_tokens(context, video_path)] if SPAN_FPS in rules.tools else [0]
    if ZOOM in rules.tools:
        side = math.isqrt(rules.zoom_max_pixels)
        duration_s = context.reader.describe(video_path).duration_s
        size = processor.fit(side, side, rules.zoom_max_pixels)
        tokens.append(len(processor.video_block(unseen_frames((duration_s,), size))))
    return max(tokens)


def _look_tokens(context: EpisodeContext, video_path: str) -> int:
    clip, processor, rules = (
        context.reader.describe(video_path),
        context.processor,
        context.retrieval,
    )
    size = processor.fit(clip.height, clip.width, rules.max_pixels)
    return len(processor.video_block(unseen_frames((clip.duration_s,) * rules.max_frames, size)))  # the longest times
