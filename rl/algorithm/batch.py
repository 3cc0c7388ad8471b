"""Scored groups -> samples -> ranks -> micro-batches -> tensors.

A group never spans ranks, and every rank makes the same number of micro-batches: each is one collective forward pass
with exactly one call of the vision tower.

Legend: G siblings · B samples of a micro-batch · T tokens, right-padded · S sampled tokens of one row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from rl.algorithm.advantages import NOT_LEARNED, Credit, GroupCredit, credit_group, token_advantages
from rl.algorithm.loss import LossTotals
from rl.algorithm.segments import FlatTrajectory, flatten
from rl.config.algorithm import AdvantageConfig
from rl.trajectory import (
    Frames,
    RewardFailure,
    ScoredGroup,
    Segment,
    StopReason,
    TrainingSample,
    trajectory_tokens,
)

if TYPE_CHECKING:
    from rl.policy.geometry import PackedVideo
    from rl.policy.token_ids import TokenIds

SD_GRPO = AdvantageConfig()
Made = TypeVar("Made")


class VideoPacker(Protocol):
    """What collating needs of rl.policy.processor.Processor."""

    ids: TokenIds

    def pack(self, frames: Frames) -> PackedVideo:
        """Patches as the vision tower reads them."""

    def positions(self, token_ids: Sequence[int], videos: Sequence[Frames]) -> np.ndarray:
        """MRoPE positions, int64 (3, T)."""


@dataclass(frozen=True, slots=True, eq=False)
class LearnerBatch:
    """One micro-batch as tensors. Values of a token stand at its own place, 0 on context and padding."""

    input_ids_BT: Tensor
    attention_mask_BT: Tensor  # 1 on tokens, 0 on padding
    position_ids_3BT: Tensor
    segment_ids_BT: Tensor
    loss_mask_BT: Tensor  # bool: learned from
    behavior_logprobs_BT: Tensor
    advantages_BT: Tensor
    policy_versions_BT: Tensor  # -1 on context and padding
    videos: tuple[PackedVideo, ...]  # of all rows, in order of appearance; siblings share one object


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


def num_micro_batches(num_samples: int, size: int) -> int:
    """Micro-batches a rank needs; all ranks then make as many as the one that needs most."""
    return -(-num_samples // size)


def micro_batches(
    samples: Sequence[TrainingSample], size: int, count: int | None = None
) -> list[tuple[TrainingSample, ...]]:
    """Cut samples, in order, into `count` micro-batches of at most `size`; those for which nothing is left are empty.

    Raises:
        ValueError: more samples than fit.
    """
    needed = num_micro_batches(len(samples), size)
    count = needed if count is None else count
    if needed > count:
        raise ValueError(f"{len(samples)} samples need {needed} micro-batches of {size}, not {count}")
    return [tuple(samples[i * size : (i + 1) * size]) for i in range(count)]


def collate(
    samples: Sequence[TrainingSample], processor: VideoPacker, device: torch.device | str = "cpu"
) -> LearnerBatch:
    """Tensors of one micro-batch, right-padded. An empty one becomes a row of padding without a gradient, so that
    its rank can take part in the forward pass. A block shared by siblings is packed once."""
    samples = samples or (_blank(processor.ids.pad),)
    packed: dict[str, PackedVideo] = {}
    for frames in (frames for sample in samples for frames in sample.videos):
        if frames.digest not in packed:
            packed[frames.digest] = processor.pack(frames)
    positions = [processor.positions(sample.token_ids, sample.videos) for sample in samples]

    def padded(rows: Sequence[Sequence], fill: float, dtype: torch.dtype) -> Tensor:
        return _padded(rows, fill, dtype).to(device)

    return LearnerBatch(
        input_ids_BT=padded([sample.token_ids for sample in samples], processor.ids.pad, torch.long),
        attention_mask_BT=padded([[1] * len(sample.token_ids) for sample in samples], 0, torch.long),
        position_ids_3BT=torch.stack([padded([p[axis] for p in positions], 0, torch.long) for axis in range(3)]),
        segment_ids_BT=padded([sample.segment_ids for sample in samples], Segment.CONTEXT.value, torch.long),
        loss_mask_BT=padded([sample.loss_mask for sample in samples], False, torch.bool),
        behavior_logprobs_BT=padded([sample.behavior_logprobs for sample in samples], 0.0, torch.float32),
        advantages_BT=padded([sample.advantages for sample in samples], 0.0, torch.float32),
        policy_versions_BT=padded([sample.policy_versions for sample in samples], -1, torch.long),
        videos=tuple(packed[frames.digest] for sample in samples for frames in sample.videos),
    )


def sampled_values(batch: LearnerBatch, values_BT: Tensor) -> Iterator[np.ndarray]:
    """Of each row, the values at its sampled tokens (S, float32); NaN on those not learned from."""
    learned_BT = values_BT.detach().float().masked_fill(~batch.loss_mask_BT, float("nan")).cpu()
    sampled_BT = (batch.segment_ids_BT != Segment.CONTEXT.value).cpu()
    return (row_T[mask_T].numpy() for row_T, mask_T in zip(learned_BT, sampled_BT, strict=True))


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


def _blank(pad_id: int) -> TrainingSample:
    return TrainingSample((pad_id,) * 2, (0, 0), (0, 0), (0.0,) * 2, (0.0,) * 2, (False,) * 2, (-1,) * 2, ())


def _padded(rows: Sequence[Sequence], fill: float, dtype: torch.dtype) -> Tensor:
    padded_BT = torch.full((len(rows), max(len(row) for row in rows)), fill, dtype=dtype)
    for row_T, values in zip(padded_BT, rows, strict=True):
        row_T[: len(values)] = torch.as_tensor(values, dtype=dtype)
    return padded_BT


def _tokens(scored: ScoredGroup) -> int:
    """Tokens a rank will have to process: those of siblings that could be scored."""
    pairs = zip(scored.group.trajectories_G, scored.rewards_G, strict=True)
    return sum(len(trajectory_tokens(t)) for t, reward in pairs if not isinstance(reward, RewardFailure))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
