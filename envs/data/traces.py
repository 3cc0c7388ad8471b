"""Supervised traces run through the environment, so that cold start and rollouts have exactly one form.

The trace is the policy: its replies are the completions, frames are inserted where its calls end, and what was
inserted is context, as in any other trajectory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from envs.data.formats import RetrievalTrace
from envs.data.rows import UnusableRow
from envs.initial_observation import make_initial_observation
from envs.prompts import encode_reply
from envs.rollout import EpisodeContext, make_env
from envs.tools.span_fps import render_call
from envs.video.reader import VideoError
from rl.trajectory import Completion, Frames, GrantedCall, StopReason, TimeSpan, Trajectory, VideoTask


@dataclass(frozen=True, slots=True)
class Clip:
    """What a trace has to know of its video."""

    duration_s: float
    native_fps: float  # 0: not known


def trace_to_trajectory(trace: RetrievalTrace, episode_context: EpisodeContext) -> tuple[Trajectory, Frames]:
    """Run a trace through the environment; decodes video.

    Returns:
        The trajectory, log-probs 0 and policy version 0 on every written token, and its coarse frames.
    Raises:
        UnusableRow: a call is refused, the trace does not fit the context, or the video cannot be read.
    """
    written = [
        encode_reply(reply, episode_context.processor, episode_context.form.tags)
        for reply in _as_written(trace, episode_context)
    ]
    written[-1] += (episode_context.processor.ids.im_end,)
    try:
        initial = make_initial_observation(
            trace.task,
            processor=episode_context.processor,
            reader=episode_context.reader,
            rules=episode_context.coarse,
            form=episode_context.form,
            look_pixels=episode_context.retrieval.look_pixels,
        )
    except VideoError as error:
        raise UnusableRow(f"{trace.task.task_id}: {error}") from error
    env = make_env(trace.task, initial, episode_context, max_new_tokens=sum(map(len, written)))
    outcome = env.reset()
    for token_ids in written:
        if not isinstance(outcome, Trajectory):
            _require_room(trace, len(token_ids), env.new_tokens_left)
            outcome = env.step(Completion(token_ids, (0.0,) * len(token_ids), "stop", policy_version=0))
    _require_success(trace, outcome)
    return outcome, initial.frames


def _as_written(trace: RetrievalTrace, episode_context: EpisodeContext) -> tuple[str, ...]:
    """The replies without what the prompt has written already: the `<think>` that it leaves open.

    Raises:
        UnusableRow: the thought that the prompt opens is never closed.
    """
    if not episode_context.processor.opens_thought:
        return trace.replies
    if not any("</think>" in reply for reply in trace.replies):
        raise UnusableRow(f"{trace.task.task_id}: no </think>: this policy's prompts open a thought")
    first, *further = trace.replies
    return first.removeprefix("<think>").lstrip(), *further


def traces_from_evidence(
    tasks: Sequence[VideoTask],
    *,
    clip_of: Callable[[str], Clip],
    window_jitter_s: float,
    fps_jitter: float,
    per_task: int,
    seed: int,
) -> tuple[RetrievalTrace, ...]:
    """Traces for annotated tasks that have none: look roughly where the evidence is, then answer.

    Window ends move by up to `window_jitter_s` and the rate by up to `fps_jitter`, within what the clip has, so that
    the policy learns the form of a look and reinforcement learning its place. Tasks without evidence span and rate give
    no trace.

    Args:
        tasks: their evidence lies within their clips.
        clip_of: a video's length and rate.
    """
    rng = np.random.default_rng([seed, 11])
    annotated = [task for task in tasks if task.evidence_span is not None and task.evidence_fps is not None]
    return tuple(
        _jittered_trace(task, clip_of(task.video_path), window_jitter_s, fps_jitter, rng)
        for task in annotated
        for _ in range(per_task)
    )


def _jittered_trace(
    task: VideoTask, clip: Clip, window_jitter_s: float, fps_jitter: float, rng: np.random.Generator
) -> RetrievalTrace:
    window = _jittered_window(task.evidence_span, clip.duration_s, window_jitter_s, rng)
    fps = round(max(1.0, task.evidence_fps + rng.uniform(-fps_jitter, fps_jitter)))
    call = render_call(window, _within_rate(fps, clip.native_fps))
    return RetrievalTrace(task, (f"<think>Look closer.{call}", f"</think><answer>{task.answer}</answer>"))


def _jittered_window(evidence: TimeSpan, duration_s: float, jitter_s: float, rng: np.random.Generator) -> TimeSpan:
    """Both ends moved independently, to tenths of a second, within the clip and a second apart or as far as it is long.

    The clip's end is written as it is, in whole hundredths: rounded up, it would teach to ask for what is not there.
    """
    hundredths = math.floor(duration_s * 100 + 1e-6)  # 0.29 * 100 is 28.999…
    clip_end_s = (hundredths - (hundredths / 100 > duration_s)) / 100
    shortest_s = min(1.0, clip_end_s)
    start_s = round(evidence.start_s + rng.uniform(-jitter_s, jitter_s), 1)
    end_s = round(evidence.end_s + rng.uniform(-jitter_s, jitter_s), 1)
    start_s = min(max(start_s, 0.0), clip_end_s - shortest_s)
    return TimeSpan(start_s, min(max(end_s, start_s + shortest_s), clip_end_s))


def _within_rate(fps: int, native_fps: float) -> float:
    """The rate, or the highest that the clip has: a whole number where it has one."""
    if not native_fps > 0 or fps <= native_fps:  # not known, or within it
        return fps
    return math.floor(native_fps) if native_fps >= 1 else native_fps


def _require_room(trace: RetrievalTrace, needed: int, left: int) -> None:
    if needed > left:
        raise UnusableRow(f"{trace.task.task_id}: a reply of {needed} tokens, but room for {left} in the context")


def _require_success(trace: RetrievalTrace, outcome: Trajectory) -> None:
    refused = [call.reason for call in outcome.calls if not isinstance(call, GrantedCall)]
    if refused:
        raise UnusableRow(f"{trace.task.task_id}: the call is refused: {refused[0]}")
    if outcome.stop_reason is not StopReason.ANSWERED:
        raise UnusableRow(f"{trace.task.task_id}: {outcome.stop_reason.value}: {outcome.note or 'no room to answer'}")
