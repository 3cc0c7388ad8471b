"""Scored groups -> samples, and groups -> ranks; rl.algorithm.packing and learner_batch make tensors of samples.

A group never spans ranks, so that what siblings share is computed once.

Legend: G siblings · T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from rl.algorithm.advantages import NOT_LEARNED, Credit, GroupCredit, credit_group, token_advantages
from rl.algorithm.loss import LossTotals
from rl.algorithm.segments import FlatTrajectory, flatten
from rl.config.algorithm import AdvantageConfig
from rl.trajectory import (
    RewardFailure,
    ScoredGroup,
    Segment,
    StopReason,
    TrainingSample,
    trajectory_tokens,
)

SD_GRPO = AdvantageConfig()
Made = TypeVar("Made")


def build_training_samples(
    scored: ScoredGroup, rules: AdvantageConfig = SD_GRPO, *, mask_truncated: bool = True
) -> tuple[TrainingSample | None, ...]:
    """Split every sibling at its retrieval boundary and credit it.

    None stands for a sibling without a token to learn from: reward failures, unreadable videos, truncated ones.

    Raises:
        ValueError: fewer than two siblings.
    """
    samples_G = []
    credit_G = learned_credit(scored, rules, mask_truncated=mask_truncated)
    for trajectory, own in zip(scored.group.trajectories_G, credit_G, strict=True):
        flat = flatten(trajectory, scored.group.coarse_frames)
        advantages_T, mask_T = token_advantages(own, flat.segment_ids)
        samples_G.append(_sample(flat, advantages_T, mask_T) if any(mask_T) else None)
    return tuple(samples_G)


def learned_credit(
    scored: ScoredGroup, rules: AdvantageConfig = SD_GRPO, *, mask_truncated: bool = True
) -> tuple[Credit, ...]:
    """What each sibling's tokens are credited with. Truncated siblings get nothing where `mask_truncated`, but keep
    their place in the baseline: their rewards are real, only their last turn is unfinished.

    Raises:
        ValueError: fewer than two siblings.
    """
    pairs = zip(scored.group.trajectories_G, group_credit(scored, rules).credit_G, strict=True)
    return tuple(
        NOT_LEARNED if mask_truncated and trajectory.stop_reason is StopReason.TRUNCATED else own
        for trajectory, own in pairs
    )


def group_credit(scored: ScoredGroup, rules: AdvantageConfig = SD_GRPO) -> GroupCredit:
    """Credit of all siblings, from their rewards and whether they called."""
    called_G = [bool(trajectory.calls) for trajectory in scored.group.trajectories_G]
    return credit_group(scored.rewards_G, called_G, rules)


def credit_metrics(scored: Sequence[ScoredGroup], rules: AdvantageConfig = SD_GRPO) -> dict[str, float]:
    """Shares of zero-variance groups, and mean |advantage| over the tokens of each segment. Over a step."""
    credits_of = [group_credit(group, rules) for group in scored]
    annotated = [credit.zero_variance_sampling for credit in credits_of if credit.zero_variance_sampling is not None]
    sizes_of = {segment: [] for segment in (Segment.SAMPLING, Segment.REASONING)}
    for group, credit in zip(scored, credits_of, strict=True):
        for trajectory, own in zip(group.group.trajectories_G, credit.credit_G, strict=True):
            for turn in trajectory.turns:
                value = own.of(turn.segment)
                if value is not None:
                    sizes_of[turn.segment] += [abs(value)] * len(turn.completion.token_ids)
    return {
        "group/zero_variance_sampling": _mean(annotated),
        "group/zero_variance_reasoning": _mean([credit.zero_variance_reasoning for credit in credits_of]),
        "group/zero_variance_both": _mean([credit.is_zero_variance for credit in credits_of]),
        "advantage/sampling": _mean(sizes_of[Segment.SAMPLING]),
        "advantage/reasoning": _mean(sizes_of[Segment.REASONING]),
    }


def loss_totals(samples: Sequence[TrainingSample]) -> LossTotals:
    """This rank's share of the denominators; add those of the other ranks."""
    learned = [sum(sample.loss_mask) for sample in samples]
    return LossTotals(num_sequences=sum(tokens > 0 for tokens in learned), num_tokens=sum(learned))


def assign_ranks(scored: Sequence[ScoredGroup], world_size: int) -> list[list[int]]:
    """Deal whole groups to ranks: at most ceil(groups / ranks) each, the longest first to the rank with fewest tokens.

    Returns:
        For each rank, which groups it gets, in their order.
    """
    tokens_of = [_tokens(group) for group in scored]
    most = -(-len(scored) // world_size)
    dealt: list[list[int]] = [[] for _ in range(world_size)]
    for index in sorted(range(len(scored)), key=lambda i: (-tokens_of[i], i)):
        open_ranks = [rank for rank in dealt if len(rank) < most]
        min(open_ranks, key=lambda rank: (sum(tokens_of[i] for i in rank), len(rank))).append(index)
    return [sorted(rank) for rank in dealt]


def gather_ranks(dealt: Sequence[Sequence[int]], made: Sequence[Sequence[Made]]) -> tuple[Made, ...]:
    """What the ranks made of the groups that `assign_ranks` dealt, one thing per group, in the order of all groups."""
    by_group = {
        index: thing
        for mine, things in zip(dealt, made, strict=True)
        for index, thing in zip(mine, things, strict=True)
    }
    return tuple(by_group[index] for index in range(len(by_group)))


def _sample(flat: FlatTrajectory, advantages_T: tuple[float, ...], mask_T: tuple[bool, ...]) -> TrainingSample:
    return TrainingSample(
        token_ids=flat.token_ids,
        segment_ids=flat.segment_ids,
        turn_ids=flat.turn_ids,
        behavior_logprobs=flat.behavior_logprobs,
        advantages=advantages_T,
        loss_mask=mask_T,
        policy_versions=flat.policy_versions,
        videos=flat.videos,
    )


def _tokens(scored: ScoredGroup) -> int:
    """Tokens a rank will have to process: those of siblings that could be scored."""
    pairs = zip(scored.group.trajectories_G, scored.rewards_G, strict=True)
    return sum(len(trajectory_tokens(t)) for t, reward in pairs if not isinstance(reward, RewardFailure))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
