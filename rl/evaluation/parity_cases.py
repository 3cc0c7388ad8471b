"""Trajectories whose log-probs parity compares, and negative controls: the same with altered videos.

Legend: T tokens · K scenes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from rl.evaluation.forced_calls import NOT_DRAWN
from rl.policy.processor import Processor
from rl.trajectory import Frames, Segment, TrajectoryGroup, trajectory_tokens, trajectory_videos

WRONG_PACE = 3.0  # the wrong clock runs so much faster


class PromptScorer(Protocol):
    """The engine, as far as parity needs it."""

    def score(self, token_ids: Sequence[int], videos: Sequence[Frames]) -> Sequence[float]:
        """Log-prob of every prompt token at temperature 1 over the allowed ids; anything on the others."""


@dataclass(frozen=True, slots=True)
class ParityCase:
    """One trajectory with the engine's log-probs. Every sequence has one entry per token."""

    token_ids: tuple[int, ...]
    segment_ids: tuple[int, ...]  # Segment values
    engine_logprobs: tuple[float, ...]  # drawn tokens: behaviour; others: scored at temperature 1
    drawn: tuple[bool, ...]  # by the engine, at the run's temperature; false on context and in calls that were forced
    videos: tuple[Frames, ...]


def parity_cases(engine: PromptScorer, group: TrajectoryGroup) -> list[ParityCase]:
    """A group's trajectories as flat tokens; the engine scores what it did not draw: context, and calls forced on it.

    Raises:
        ValueError: the engine gave a token NaN.
    """
    cases = []
    for trajectory in group.trajectories_G:
        token_ids, videos = trajectory_tokens(trajectory), trajectory_videos(group.coarse_frames, trajectory.turns)
        segment_ids, behaviour = [], []
        for turn in trajectory.turns:
            context = len(turn.context_token_ids)
            behaviour += [NOT_DRAWN] * context + [*turn.completion.logprobs]
            segment_ids += [int(Segment.CONTEXT)] * context + [int(turn.segment)] * len(turn.completion.token_ids)
        drawn = tuple(logprob != NOT_DRAWN for logprob in behaviour)
        scored = engine.score(token_ids, videos)
        logprobs = tuple(
            own if is_drawn else score for own, score, is_drawn in zip(behaviour, scored, drawn, strict=True)
        )
        if any(map(math.isnan, logprobs)):
            raise ValueError(f"task {group.task.task_id}: the engine gave {sum(map(math.isnan, logprobs))} tokens NaN")
        cases.append(ParityCase(token_ids, tuple(segment_ids), logprobs, drawn, videos))
    return cases


def with_wrong_durations(processor: Processor, case: ParityCase) -> ParityCase:
    """The same scenes on a clock that runs too fast, in positions and in the times written between them."""
    videos = tuple(
        replace(video, timestamps_s_T=tuple(WRONG_PACE * time_s for time_s in video.timestamps_s_T))
        for video in case.videos
    )
    columns, done = ([], [], [], []), 0
    for video, (start, stop) in zip(videos, processor.block_spans(case.token_ids, case.videos), strict=True):
        block = processor.video_block(video)
        new = (block, *([value] * len(block) for value in (int(Segment.CONTEXT), np.nan, False)))
        for column, old, piece in zip(columns, _columns(case), new, strict=True):
            column += [*old[done:start], *piece]
        done = stop
    return ParityCase(*((*column, *old[done:]) for column, old in zip(columns, _columns(case), strict=True)), videos)


def with_shifted_pixels(processor: Processor, case: ParityCase) -> ParityCase:
    """Every frame moved to the right by one patch."""
    patch = processor.geometry.patch
    shifted = (replace(video, pixels_THWC=np.roll(video.pixels_THWC, patch, axis=2)) for video in case.videos)
    return replace(case, videos=tuple(shifted))


def with_permuted_scenes(processor: Processor, case: ParityCase) -> ParityCase:
    """The scenes in reverse order on the clock as it was."""
    return replace(
        case, videos=tuple(_reversed(video, processor.geometry.clock(video).times_s_K) for video in case.videos)
    )


CONTROLS: Mapping[str, Callable[[Processor, ParityCase], ParityCase]] = {
    "wrong_durations": with_wrong_durations,
    "shifted_pixels": with_shifted_pixels,
    "permuted_scenes": with_permuted_scenes,
}


def _reversed(video: Frames, times_s_K: Sequence[float]) -> Frames:
    scenes = np.split(video.pixels_THWC, np.cumsum(video.scene_lengths[:-1]))
    lengths = video.scene_lengths[::-1]
    times_s_T = tuple(time_s for time_s, length in zip(times_s_K, lengths, strict=True) for _ in range(length))
    return replace(video, pixels_THWC=np.concatenate(scenes[::-1]), scene_lengths=lengths, timestamps_s_T=times_s_T)


def _columns(case: ParityCase) -> tuple[tuple, tuple, tuple, tuple]:
    return case.token_ids, case.segment_ids, case.engine_logprobs, case.drawn
