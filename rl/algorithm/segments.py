"""From a trajectory to flat tokens: whose token each one is, which turn it belongs to, who produced it.

The retrieval boundary is defined here, once. A turn that ends in a call, well-formed or not, is SAMPLING; the last turn
is REASONING; what the environment inserted, before whichever turn, is CONTEXT. No text is searched.

Legend: T tokens of a trajectory.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from rl.trajectory import Frames, Segment, Trajectory, Turn, trajectory_videos


@dataclass(frozen=True, slots=True)
class FlatTrajectory:
    """One trajectory as columns; every sequence but `videos` has T entries.

    Example: an initial prompt of two tokens, a call of one, an injected video of one and an answer of two:

        token_ids            7 8 | 5 | 9 | 6 2
        segment_ids          0 0   1   0   2 2
        turn_ids             0 0   0   1   1 1
        policy_versions     -1 -1  3  -1   3 3
    """

    token_ids: tuple[int, ...]
    segment_ids: tuple[int, ...]  # Segment values
    turn_ids: tuple[int, ...]
    behavior_logprobs: tuple[float, ...]  # 0 on context
    policy_versions: tuple[int, ...]  # -1 on context
    videos: tuple[Frames, ...]  # in order of appearance

    def __len__(self) -> int:
        return len(self.token_ids)


def flatten(trajectory: Trajectory, coarse_frames: Frames | None) -> FlatTrajectory:
    """Lay a trajectory out flat.

    Raises:
        ValueError: a turn's segment contradicts its place, or a completion has not one log-prob per token.
    """
    turns = trajectory.turns
    for index, turn in enumerate(turns):
        _check(turn, index, is_last=index == len(turns) - 1)
    return FlatTrajectory(
        token_ids=tuple(chain.from_iterable(part for turn in turns for part in _tokens(turn))),
        segment_ids=_per_token([(Segment.CONTEXT.value, turn.segment.value) for turn in turns], turns),
        turn_ids=_per_token([(index, index) for index in range(len(turns))], turns),
        behavior_logprobs=tuple(
            chain.from_iterable(
                part for turn in turns for part in ((0.0,) * len(turn.context_token_ids), turn.completion.logprobs)
            )
        ),
        policy_versions=_per_token([(-1, turn.completion.policy_version) for turn in turns], turns),
        videos=trajectory_videos(coarse_frames, turns),
    )


def _per_token(values: list[tuple[int, int]], turns: tuple[Turn, ...]) -> tuple[int, ...]:
    """Repeat each turn's (value on context, value on completion) over its tokens."""
    return tuple(
        chain.from_iterable(
            (value,) * len(part)
            for pair, turn in zip(values, turns, strict=True)
            for value, part in zip(pair, _tokens(turn), strict=True)
        )
    )


def _tokens(turn: Turn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the environment put before a turn, and what the policy wrote in it."""
    return turn.context_token_ids, turn.completion.token_ids


def _check(turn: Turn, index: int, *, is_last: bool) -> None:
    expected = Segment.REASONING if turn.call is None else Segment.SAMPLING
    if turn.segment is not expected:
        ends = "without" if turn.call is None else "in"
        raise ValueError(f"turn {index} is {turn.segment.name}, but it ends {ends} a call")
    if turn.segment is Segment.REASONING and not is_last:
        raise ValueError(f"turn {index} ends without a call, but is not the last")
    tokens, logprobs = len(turn.completion.token_ids), len(turn.completion.logprobs)
    if tokens != logprobs:
        raise ValueError(f"turn {index} has {tokens} tokens, but {logprobs} behaviour log-probs")
