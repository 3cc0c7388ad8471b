"""The held-out numbers of a training run: means over tasks it has never seen, rolled out greedily."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from rl.group_summary import RemoteGroup
from rl.tracking.step_metrics import call_shares, number_means, tool_metrics
from rl.trajectory import RewardFailure, ScoredGroup

EVALUATION_STEP = -1  # seeds of evaluation never meet those of training


def held_out_metrics(scored: Sequence[ScoredGroup[RemoteGroup]], *, answer_terms: Sequence[str]) -> dict[str, float]:
    """Means over held-out tasks. Failures count in `failed` and are left out of the means.

    Args:
        answer_terms: names of the reward terms that score the answer; their mean is reported as accuracy.
    """
    pairs = [
        (trajectory, reward)
        for group in scored
        for trajectory, reward in zip(group.group.trajectories_G, group.rewards_G, strict=True)
    ]
    scored_pairs = [(trajectory, reward) for trajectory, reward in pairs if not isinstance(reward, RewardFailure)]
    rewards = [reward for _, reward in scored_pairs]
    terms = sorted({name for reward in rewards for name in reward.breakdown})
    granted = [call for trajectory, _ in scored_pairs for call in trajectory.granted_calls]
    shares = call_shares([trajectory for trajectory, _ in scored_pairs])
    means = {
        f"held_out/term/{name}": _mean([r.breakdown[name] for r in rewards if name in r.breakdown]) for name in terms
    }
    return means | {
        **number_means(rewards, "held_out/number/"),
        "held_out/reward_sampling": _mean([reward.sampling for reward in rewards if reward.sampling is not None]),
        "held_out/reward_reasoning": _mean([reward.reasoning for reward in rewards]),
        "held_out/accuracy": _mean([means[f"held_out/term/{name}"] for name in answer_terms if name in terms]),
        **{f"held_out/{name}": share for name, share in shares.items()},
        **tool_metrics([trajectory for trajectory, _ in scored_pairs], "held_out/tool/"),
        "held_out/frames": sum(call.num_frames for call in granted) / max(len(scored_pairs), 1),
        "held_out/tasks": float(len(pairs)),
        "held_out/failed": float(len(pairs) - len(scored_pairs)),
    }


def held_out_loss(sources: Sequence[str], losses: Sequence[tuple[float, int] | None]) -> dict[str, float]:
    """Mean negative log-prob per token of held-out conversations: of all, and of each source.

    Args:
        sources: where each conversation is from.
        losses: (summed negative log-prob in nat, tokens) of each; None: it could not be used.
    """
    usable = [(source, loss) for source, loss in zip(sources, losses, strict=True) if loss is not None]
    by_source = {
        f"held_out/nll/{name}": _per_token([loss for source, loss in usable if source == name])
        for name in dict.fromkeys(sources)
    }
    return by_source | {
        "held_out/nll": _per_token([loss for _, loss in usable]),
        "held_out/tokens": float(sum(tokens for _, (_, tokens) in usable)),
        "held_out/tasks": float(len(losses)),
        "held_out/failed": float(len(losses) - len(usable)),
    }


def _per_token(losses: Sequence[tuple[float, int]]) -> float:
    tokens = sum(count for _, count in losses)
    return math.fsum(nll for nll, _ in losses) / tokens if tokens else math.nan


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan
