"""Scored groups on their way to the learner ranks: handed out by reference, and made again where they are lost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from actors.pending_write import LearnerError
from rl.group_summary import RemoteGroup
from rl.trajectory import RewardFailure, ScoredGroup

log = logging.getLogger(__name__)

RESTORATIONS = 3  # times groups may get lost on their way to the ranks

Scored = ScoredGroup[RemoteGroup]
Restore = Callable[[Sequence[Scored]], list[Scored]]  # in their order
HandOut = Callable[[Sequence[Sequence[Scored]]], Sequence[Sequence[int]]]  # each rank's groups -> those it finds lost


def deliver(
    scored: Sequence[Scored], assignment: Sequence[Sequence[int]], hand_out: HandOut, restore: Restore | None
) -> list[Scored]:
    """Hand every rank its groups, restored and handed out again if they are lost; returns all as they arrived.

    Args:
        assignment: for each rank, which groups it gets.
    Raises:
        LearnerError: they got lost RESTORATIONS times, or cannot be restored.
    """
    scored = list(scored)
    for attempt in range(1, RESTORATIONS + 1):
        missing = hand_out([[scored[index] for index in mine] for mine in assignment])
        pairs = zip(assignment, missing, strict=True)
        lost = sorted({mine[index] for mine, indices in pairs for index in indices})
        if not lost:
            return scored
        log.warning("%d groups, or their pixels, are lost and made again", len(lost))
        if restore is None or attempt == RESTORATIONS:
            break
        for index, restored in zip(lost, restore([scored[index] for index in lost]), strict=True):
            scored[index] = restored
    raise LearnerError(f"{len(lost)} groups, or their pixels, got lost on their way to the learners")


def tokens_to_learn(scored: Scored) -> int:
    """Tokens a rank will have to process: those of siblings that could be scored."""
    pairs = zip(scored.group.trajectories_G, scored.rewards_G, strict=True)
    return sum(trajectory.tokens for trajectory, reward in pairs if not isinstance(reward, RewardFailure))
