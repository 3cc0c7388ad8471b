"""Supervised traces run through the environment, so that cold start and rollouts have exactly one form.

The trace is the policy: its replies are the completions, frames are inserted where its calls end, and what was
inserted is context, as in any other trajectory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from envs.data.formats import RetrievalTrace
from envs.data.rows import UnusableRow
from envs.initial_observation import make_initial_observation
from envs.prompts import encode_reply
from envs.retrieval import render_call
from envs.rollout import EpisodeContext, make_env
from envs.video.reader import VideoError
from rl.trajectory import Completion, Frames, RetrievalCall, StopReason, TimeSpan, Trajectory, VideoTask


def trace_to_trajectory(trace: RetrievalTrace, episode_context: EpisodeContext) -> tuple[Trajectory, Frames]:
    """Run a trace through the environment; decodes video.

    Returns:
        The trajectory, log-probs 0 and policy version 0 on every written token, and its coarse frames.
    Raises:
        UnusableRow: a call is refused, the trace does not fit the context, or the video cannot be read.
    """
    written = [encode_reply(reply, episode_context.processor) for reply in trace.replies]
    written[-1] += (episode_context.processor.ids.im_end,)
    try:
        initial = make_initial_observation(
            trace.task,
            processor=episode_context.processor,
            reader=episode_context.reader,
            rules=episode_context.coarse,
            form=episode_context.form,
            look_pixels=episode_context.retrieval.max_pixels,
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


def traces_from_evidence(
    tasks: Sequence[VideoTask], *, window_jitter_s: float, fps_jitter: float, per_task: int, seed: int
) -> tuple[RetrievalTrace, ...]:
    """Traces for annotated tasks that have none: look roughly where the evidence is, then answer.

    Window ends move by up to `window_jitter_s` and the rate by up to `fps_jitter`, so that the policy learns the form
    of a look and reinforcement learning its place. Tasks without evidence span and rate give no trace.
    """
    rng = np.random.default_rng([seed, 11])
    annotated = [task for task in tasks if task.evidence_span is not None and task.evidence_fps is not None]
    return tuple(_jittered_trace(task, window_jitter_s, fps_jitter, rng) for task in annotated for _ in range(per_task))


def _jittered_trace(
    task: VideoTask, window_jitter_s: float, fps_jitter: float, rng: np.random.Generator
) -> RetrievalTrace:
    start_s = max(0.0, task.evidence_span.start_s + rng.uniform(-window_jitter_s, window_jitter_s))
    end_s = max(start_s + 1.0, task.evidence_span.end_s + rng.uniform(-window_jitter_s, window_jitter_s))
    fps = max(1.0, task.evidence_fps + rng.uniform(-fps_jitter, fps_jitter))
    call = render_call(TimeSpan(round(start_s, 1), round(end_s, 1)), round(fps))
    return RetrievalTrace(task, (f"<think>Look closer.{call}", f"</think><answer>{task.answer}</answer>"))


def _require_room(trace: RetrievalTrace, needed: int, left: int) -> None:
    if needed > left:
        raise UnusableRow(f"{trace.task.task_id}: a reply of {needed} tokens, but room for {left} in the context")


def _require_success(trace: RetrievalTrace, outcome: Trajectory) -> None:
    refused = [call.reason for call in outcome.calls if not isinstance(call, RetrievalCall)]
    if refused:
        raise UnusableRow(f"{trace.task.task_id}: the call is refused: {refused[0]}")
    if outcome.stop_reason is not StopReason.ANSWERED:
        raise UnusableRow(f"{trace.task.task_id}: {outcome.stop_reason.value}: {outcome.note or 'no room to answer'}")
