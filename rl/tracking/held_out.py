"""The held-out numbers of a training run: means over tasks it has never seen, rolled out greedily."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from rl.group_summary import RemoteGroup
from rl.tracking.step_metrics import call_shares
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
        "held_out/reward_sampling": _mean([reward.sampling for reward in rewards if reward.sampling is not None]),
        "held_out/reward_reasoning": _mean([reward.reasoning for reward in rewards]),
        "held_out/accuracy": _mean([means[f"held_out/term/{name}"] for name in answer_terms if name in terms]),
        **{f"held_out/{name}": share for name, share in shares.items()},
        "held_out/frames": sum(call.num_frames for call in granted) / max(len(scored_pairs), 1),
        "held_out/tasks": float(len(pairs)),
        "held_out/failed": float(len(pairs) - len(scored_pairs)),
    }


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan
