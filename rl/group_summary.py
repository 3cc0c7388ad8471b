"""What the driver knows of a group: references, lengths, outcomes. Tokens and pixels stay where they were made.

    RolloutWorker -> GroupSummary, and the TrajectoryGroup in the object store -> RemoteGroup (driver)

Legend: G siblings of one task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl.trajectory import (
    Call,
    ClipFailure,
    Frames,
    GrantedCall,
    Segment,
    StopReason,
    Trajectory,
    TrajectoryGroup,
    Turn,
    VideoTask,
)


@dataclass(frozen=True, slots=True)
class BlockSummary:
    """A video block without its pixels and timestamps."""

    digest: str  # of the content, as in Frames
    num_frames: int
    num_scenes: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class TurnSummary:
    """A turn without its tokens."""

    context_tokens: int
    sampled_tokens: int
    cached_prompt_tokens: int
    policy_version: int
    segment: Segment
    block: BlockSummary | None  # the video inside the context; the first turn's is the group's `coarse_block`


@dataclass(frozen=True, slots=True)
class TrajectorySummary:
    """A trajectory without its tokens and texts."""

    turns: tuple[TurnSummary, ...]
    calls: tuple[Call, ...]  # as in Trajectory
    stop_reason: StopReason
    clip_failure: ClipFailure | None

    @property
    def granted_calls(self) -> tuple[GrantedCall, ...]:
        """Those calls that were granted, in order."""
        return tuple(call for call in self.calls if isinstance(call, GrantedCall))

    @property
    def tokens(self) -> int:
        """Of the whole token history."""
        return sum(turn.context_tokens + turn.sampled_tokens for turn in self.turns)

    @property
    def sampled_tokens(self) -> int:
        """Of these, sampled."""
        return sum(turn.sampled_tokens for turn in self.turns)


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """A group as its rollout worker describes it to the driver."""

    trajectories_G: tuple[TrajectorySummary, ...]
    coarse_block: BlockSummary | None
    seconds: Mapping[str, float]  # as in TrajectoryGroup
    digests: Mapping[str, str]  # sha256 by stage: "prompts", "tokens", "logprobs" (rl.tracking.fingerprint)


@dataclass(frozen=True, slots=True, eq=False)
class RemoteGroup:
    """A group in the object store, as the driver holds it. Siblings are in order."""

    task: VideoTask
    summary: GroupSummary
    reference: Any  # object-store reference to the TrajectoryGroup, without its pixels
    pixels: Any  # object-store reference to those
    origin: RolloutOrigin

    @property
    def trajectories_G(self) -> tuple[TrajectorySummary, ...]:
        """G."""
        return self.summary.trajectories_G

    @property
    def references(self) -> tuple[Any, Any]:
        """To the group and to its pixels."""
        return self.reference, self.pixels


@dataclass(frozen=True, slots=True)
class RolloutOrigin:
    """Which call of the engine a group came from, and when: enough to roll it out again with the same seeds."""

    step: int
    occurrence: int  # envs.rollout.occurrences
    greedily: bool
    sent_s: float  # time.monotonic() of the driver
    finished_s: float


LoadGroups = Callable[[Sequence[RemoteGroup]], Sequence[TrajectoryGroup | None]]  # None: lost with the node it lay on


def summarise(group: TrajectoryGroup, digests: Mapping[str, str]) -> GroupSummary:
    """What the driver has to know of a group."""
    trajectories_G = tuple(_trajectory(trajectory) for trajectory in group.trajectories_G)
    return GroupSummary(trajectories_G, _block(group.coarse_frames), dict(group.seconds), dict(digests))


def _trajectory(trajectory: Trajectory) -> TrajectorySummary:
    turns = tuple(map(_turn, trajectory.turns))
    return TrajectorySummary(turns, trajectory.calls, trajectory.stop_reason, trajectory.clip_failure)


def _turn(turn: Turn) -> TurnSummary:
    said = turn.completion
    return TurnSummary(
        context_tokens=len(turn.context_token_ids),
        sampled_tokens=len(said.token_ids),
        cached_prompt_tokens=said.cached_prompt_tokens,
        policy_version=said.policy_version,
        segment=turn.segment,
        block=_block(turn.frames),
    )


def _block(frames: Frames | None) -> BlockSummary | None:
    if frames is None:
        return None
    return BlockSummary(frames.digest, frames.num_frames, len(frames.scene_lengths), frames.height, frames.width)
