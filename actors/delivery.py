"""Scored groups on their way to the learner ranks: handed out by reference, and made again where they are lost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from actors.pending_write import LearnerError
from rl.group_summary import RemoteGroup
from rl.trajectory import RewardFailure, ScoredGroup

log = logging.getLogger(__name__)

RESTORATIONS = 3  # times groups may get lost on their way to the ranks

Thing = TypeVar("Thing")
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


def deal(samples: Sequence[Thing], ranks: int, *, same: int) -> list[list[Thing]]:
    """Each rank's samples, in turn.

    Args:
        same: ranks in a row that have the same.
    """
    return [list(samples[rank // same :: ranks // same]) for rank in range(ranks)]


def undeal(dealt: Sequence[Sequence[Thing]]) -> list[Thing]:
    """What was made of samples that were dealt in turn, in their order."""
    return [mine[place] for place in range(len(dealt[0])) for mine in dealt if place < len(mine)]
