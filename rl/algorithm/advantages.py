"""Group-relative credit per segment: from the rewards of G siblings to one number per token.

SD-GRPO (DynFrame, arXiv 2605.26680) as docs/concepts/sd_grpo.md describes it; GRPO and GDPO beside it. Functions of
Python numbers.

Legend: G siblings of one task · T tokens of a trajectory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from rl.config.algorithm import AdvantageConfig
from rl.trajectory import RewardFailure, Segment, SegmentRewards

EPSILON = 1e-4  # added to the standard deviation of a group's rewards


@dataclass(frozen=True, slots=True)
class Credit:
    """What the tokens of one trajectory get, by segment. None: they are not learned from."""

    sampling: float | None
    reasoning: float | None
    calls: tuple[float, ...] = ()  # of each call's tokens, in order, where calls have their own; then not `sampling`

    def of(self, segment: Segment, turn: int) -> float | None:
        """What a token of this segment gets in this turn, counted from 0. Context is never learned from.

        Every turn but the last ends in a call: the k-th call is the k-th turn.
        """
        if segment == Segment.SAMPLING:
            return self.calls[turn] if self.calls else self.sampling
        return self.reasoning if segment == Segment.REASONING else None


NOT_LEARNED = Credit(sampling=None, reasoning=None)


@dataclass(frozen=True, slots=True)
class GroupCredit:
    """Credit of all siblings, same order, and whether their rewards differed at all."""

    credit_G: tuple[Credit, ...]
    zero_variance_sampling: bool | None  # None: the task has no sampling reward
    zero_variance_reasoning: bool

    @property
    def is_zero_variance(self) -> bool:
        """The siblings do not differ in any reward, so every advantage of the group is 0."""
        return self.zero_variance_sampling is not False and self.zero_variance_reasoning


def credit_group(
    rewards_G: Sequence[SegmentRewards | RewardFailure], called_G: Sequence[bool], rules: AdvantageConfig
) -> GroupCredit:
    """Credit for every sibling by the configured method.

    A reward that could not be computed is masked and stays out of the baseline; with fewer than two siblings left there
    is no baseline, and the whole group is masked.

    Args:
        called_G: whether the sibling asked to look again at all, well-formed or not.
    Raises:
        ValueError: fewer than two siblings, R_samp is there for some of them only, or a caller has no reward of its
            calls although each is credited with its own.
    """
    if len(rewards_G) < 2:
        raise ValueError(f"a group baseline needs at least 2 siblings, got {len(rewards_G)}")
    scored = [i for i, (reward, _) in enumerate(zip(rewards_G, called_G, strict=True)) if _is_scored(reward)]
    if len(scored) < 2:
        return GroupCredit((NOT_LEARNED,) * len(rewards_G), True, True)
    sampling_G = _sampling_rewards([rewards_G[i] for i in scored])
    reasoning_G = [rewards_G[i].reasoning for i in scored]
    called = [called_G[i] for i in scored]
    if rules.calls == "each" and sampling_G is not None:
        calls_G = _rewards_of_calls([rewards_G[i] for i in scored], called)
        credits_of_scored = each_call(calls_G, reasoning_G, rules)
        zero_variance = all(_all_equal(rewards) for rewards in _by_number(calls_G))
    else:
        credits_of_scored = METHODS[rules.method](sampling_G, reasoning_G, called, rules)
        zero_variance = None if sampling_G is None else _all_equal(sampling_G)
    by_sibling = dict(zip(scored, credits_of_scored, strict=True))
    return GroupCredit(
        credit_G=tuple(by_sibling.get(i, NOT_LEARNED) for i in range(len(rewards_G))),
        zero_variance_sampling=zero_variance,
        zero_variance_reasoning=_all_equal(reasoning_G),
    )


def rules_at(rules: AdvantageConfig, step: int) -> AdvantageConfig:
    """The rules of a step, counted from 0: cross credit has gone its way on a straight line. A pure function of the
    step, so that a resumed run credits as an uninterrupted one."""
    if not rules.cross_credit_steps:
        return rules
    gone = min(step / rules.cross_credit_steps, 1.0)
    now = (1.0 - gone) * rules.cross_credit + gone * rules.cross_credit_end
    return replace(rules, cross_credit=now, cross_credit_steps=0)


def group_advantages(rewards_G: Sequence[float], scale: str = "std") -> list[float]:
    """(R - mean) / (std + 1e-4) with the population's std, or R - mean; exactly 0 where all rewards are equal.

    Sums are exact (fsum), so that the order of siblings cannot matter.
    """
    if _all_equal(rewards_G):
        return [0.0] * len(rewards_G)
    mean = fmean(rewards_G)
    centred_G = [reward - mean for reward in rewards_G]
    if scale == "none":
        return centred_G
    std = math.sqrt(fmean([centred * centred for centred in centred_G]))
    return [centred / (std + EPSILON) for centred in centred_G]


def sd_grpo(
    sampling_G: Sequence[float] | None, reasoning_G: Sequence[float], called_G: Sequence[bool], rules: AdvantageConfig
) -> list[Credit]:
    """Each segment is credited with its own reward, relative to the whole group.

    The baseline of R_samp includes siblings that never called (reward 0): the policy chooses whether there is a call,
    so a baseline over callers alone is biased. For the same reason a trajectory without a call has both roles, and
    its tokens get the sum of both advantages.
    """
    reasoning_adv_G = group_advantages(reasoning_G, rules.scale)
    if sampling_G is None:
        return _without_sampling_reward(reasoning_adv_G, rules)
    sampling_adv_G = group_advantages(sampling_G, rules.scale)
    return [
        Credit(sampling + rules.cross_credit * reasoning, reasoning)
        if called
        else Credit(sampling + reasoning, sampling + reasoning)
        for sampling, reasoning, called in zip(sampling_adv_G, reasoning_adv_G, called_G, strict=True)
    ]


def each_call(calls_G: Sequence[Sequence[float]], reasoning_G: Sequence[float], rules: AdvantageConfig) -> list[Credit]:
    """SD-GRPO where every call is credited with its own reward, relative to the group's calls of the same number.

    First calls: over the whole group, 0 for siblings without a call, which have both roles, as in `sd_grpo`. Calls
    after them: over the siblings that made one of that number. What such a call asks for does not decide who is
    compared, so with `scale: none` its expected gradient is that of its own reward times 1 - 1/n for n callers, and 0
    where there is but one: unbiased in direction. It is silent, by exchangeability exactly so, on whether to call
    again: that is learned from the answer alone. A later call is not credited to the calls before it.
    """
    reasoning_adv_G = group_advantages(reasoning_G, rules.scale)
    columns = [group_advantages(rewards, rules.scale) for rewards in _by_number(calls_G)]
    first_G, later = columns[0], [iter(column) for column in columns[1:]]
    credit_G = []
    for calls, first, reasoning in zip(calls_G, first_G, reasoning_adv_G, strict=True):
        own = [first, *(next(column) for column in later[: max(0, len(calls) - 1)])]
        if calls:
            credited = tuple(advantage + rules.cross_credit * reasoning for advantage in own)
            credit_G.append(Credit(fmean(credited), reasoning, credited))
        else:
            credit_G.append(Credit(first + reasoning, first + reasoning))
    return credit_G


def grpo(
    sampling_G: Sequence[float] | None, reasoning_G: Sequence[float], called_G: Sequence[bool], rules: AdvantageConfig
) -> list[Credit]:
    """One scalar for all tokens: the advantage of the weighted sum of both rewards (DeepSeekMath, arXiv 2402.03300)."""
    if sampling_G is None:
        whole = rules.sampling_weight + rules.reasoning_weight
        return _without_sampling_reward(group_advantages([whole * r for r in reasoning_G], rules.scale), rules)
    weights = (rules.sampling_weight, rules.reasoning_weight)
    totals_G = [weights[0] * s + weights[1] * r for s, r in zip(sampling_G, reasoning_G, strict=True)]
    return [Credit(advantage, advantage) for advantage in group_advantages(totals_G, rules.scale)]


def gdpo(
    sampling_G: Sequence[float] | None, reasoning_G: Sequence[float], called_G: Sequence[bool], rules: AdvantageConfig
) -> list[Credit]:
    """One scalar for all tokens: each reward normalised by itself, then the weighted sum (GDPO, arXiv 2601.05242).

    A role with small differences between siblings is not drowned by one with large ones. The paper's second
    normalisation, over the batch, is left out: the learning rate and the gradient norm bound the scale already.
    """
    reasoning_adv_G = group_advantages(reasoning_G, rules.scale)
    if sampling_G is None:
        whole = rules.sampling_weight + rules.reasoning_weight
        return _without_sampling_reward([whole * advantage for advantage in reasoning_adv_G], rules)
    weights = (rules.sampling_weight, rules.reasoning_weight)
    pairs = zip(group_advantages(sampling_G, rules.scale), reasoning_adv_G, strict=True)
    return [Credit(total, total) for total in (weights[0] * s + weights[1] * r for s, r in pairs)]


def token_advantages(
    credit: Credit, segment_ids_T: Sequence[int], turn_ids_T: Sequence[int]
) -> tuple[tuple[float, ...], tuple[bool, ...]]:
    """Spread a trajectory's credit over its tokens: advantages, and which tokens are learned from. Context never is."""
    pairs_T = list(zip(segment_ids_T, turn_ids_T, strict=True))
    by_pair = {(segment, turn): credit.of(Segment(segment), turn) for segment, turn in set(pairs_T)}
    credit_T = [by_pair[pair] for pair in pairs_T]
    return tuple(value or 0.0 for value in credit_T), tuple(value is not None for value in credit_T)


def _without_sampling_reward(advantages_G: Sequence[float], rules: AdvantageConfig) -> list[Credit]:
    """A task without evidence has one reward; its SAMPLING tokens share it, or are masked."""
    shared = rules.unannotated == "reason"
    return [Credit(advantage if shared else None, advantage) for advantage in advantages_G]


def _sampling_rewards(rewards_G: Sequence[SegmentRewards]) -> list[float] | None:
    sampling_G = [reward.sampling for reward in rewards_G]
    absent = sum(value is None for value in sampling_G)
    if absent not in (0, len(sampling_G)):
        raise ValueError("R_samp is missing for some siblings of a task only: it belongs to the task, not to them")
    return None if absent else sampling_G


def _rewards_of_calls(rewards_G: Sequence[SegmentRewards], called_G: Sequence[bool]) -> list[tuple[float, ...]]:
    if any(called and not reward.calls for reward, called in zip(rewards_G, called_G, strict=True)):
        raise ValueError("each call is credited with its own reward, but a sibling that called has none of its calls")
    return [reward.calls for reward in rewards_G]


def _by_number(calls_G: Sequence[Sequence[float]]) -> list[list[float]]:
    """Rewards of all first calls (0 for siblings without one), of all second calls of those who made one, ..."""
    most = max((len(calls) for calls in calls_G), default=0)
    later = [[calls[k] for calls in calls_G if len(calls) > k] for k in range(1, most)]
    return [[calls[0] if calls else 0.0 for calls in calls_G], *later]


def _is_scored(reward: SegmentRewards | RewardFailure) -> bool:
    return not isinstance(reward, RewardFailure)


def _all_equal(rewards_G: Sequence[float]) -> bool:
    return max(rewards_G) == min(rewards_G)


METHODS = {"sd_grpo": sd_grpo, "grpo": grpo, "gdpo": gdpo}
