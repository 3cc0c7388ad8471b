"""Scored groups -> samples, and groups -> ranks; rl.algorithm.packing and learner_batch make tensors of samples.

A group never spans ranks, so that what siblings share is computed once.

Legend: G siblings · T tokens.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from rl.algorithm.advantages import NOT_LEARNED, Credit, GroupCredit, credit_group, token_advantages
from rl.algorithm.loss_totals import LossTotals
from rl.algorithm.segments import FlatTrajectory, flatten
from rl.config.algorithm import AdvantageConfig
from rl.trajectory import (
    ScoredGroup,
    Segment,
    StopReason,
    TrainingSample,
)

SD_GRPO = AdvantageConfig()
LEARNED = (Segment.SAMPLING, Segment.REASONING)
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
        advantages_T, mask_T = token_advantages(own, flat.segment_ids, flat.turn_ids)
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
    """Shares of zero-variance groups, and mean |advantage| over the tokens of each segment; cross credit, where there
    is any. Over a step.

    Args:
        scored: groups as the driver holds them: what is needed of a turn is how many tokens it sampled.
    """
    credits_of = [group_credit(group, rules) for group in scored]
    annotated = [credit.zero_variance_sampling for credit in credits_of if credit.zero_variance_sampling is not None]
    sizes, tokens = {segment: [] for segment in LEARNED}, {segment: [] for segment in LEARNED}
    for group, credit in zip(scored, credits_of, strict=True):
        for trajectory, own in zip(group.group.trajectories_G, credit.credit_G, strict=True):
            for index, turn in enumerate(trajectory.turns):
                value = own.of(turn.segment, index)
                if value is not None:
                    sizes[turn.segment].append(abs(value))
                    tokens[turn.segment].append(turn.sampled_tokens)
    crossed = {"advantage/cross_credit": rules.cross_credit} if rules.cross_credit else {}
    return {
        "group/zero_variance_sampling": _mean(annotated),
        "group/zero_variance_reasoning": _mean([credit.zero_variance_reasoning for credit in credits_of]),
        "group/zero_variance_both": _mean([credit.is_zero_variance for credit in credits_of]),
        "advantage/sampling": _mean(sizes[Segment.SAMPLING], tokens[Segment.SAMPLING]),
        "advantage/reasoning": _mean(sizes[Segment.REASONING], tokens[Segment.REASONING]),
        **crossed,
    }


def loss_totals(samples: Sequence[TrainingSample]) -> LossTotals:
    """This rank's share of the denominators; add those of the other ranks."""
    learned = [sum(sample.loss_mask) for sample in samples]
    return LossTotals(num_sequences=sum(tokens > 0 for tokens in learned), num_tokens=sum(learned))


def assign_ranks(tokens_P: Sequence[int], world_size: int) -> list[list[int]]:
    """Deal whole groups to ranks: at most ceil(groups / ranks) each, the longest first to the rank with fewest tokens.

    Args:
        tokens_P: tokens of each group that a rank will have to process.
    Returns:
        For each rank, which groups it gets, in their order.
    """
    most = -(-len(tokens_P) // world_size)
    dealt: list[list[int]] = [[] for _ in range(world_size)]
    open_ranks = [(0, 0, rank) for rank in range(world_size)]  # tokens, groups, rank: a heap
    for index in sorted(range(len(tokens_P)), key=lambda i: (-tokens_P[i], i)):
        tokens, groups, rank = heapq.heappop(open_ranks)
        dealt[rank].append(index)
        if groups + 1 < most:
            heapq.heappush(open_ranks, (tokens + tokens_P[index], groups + 1, rank))
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


def _mean(values: Sequence[float], weights: Sequence[int] | None = None) -> float:
    has_any = len(values) if weights is None else sum(weights)
    return float(np.average(values, weights=weights)) if has_any else float("nan")
