"""The numbers of a step's trajectories and rewards: means, shares and counts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean

from rl.algorithm.advantages import Credit
from rl.group_summary import BlockSummary, RemoteGroup, TrajectorySummary
from rl.trajectory import (
    SPAN_FPS,
    GrantedCall,
    MalformedCall,
    RefusedCall,
    RewardFailure,
    ScoredGroup,
    SegmentRewards,
    StopReason,
    TrajectoryGroup,
)


def rollout_metrics(groups: Sequence[RemoteGroup], *, pixels_per_token: int) -> dict[str, float]:
    """What the policy did, averaged over trajectories.

    Args:
        pixels_per_token: pixels of one visual token, (patch * merge)^2.
    """
    trajectories = [trajectory for group in groups for trajectory in group.trajectories_G]
    granted = [call for trajectory in trajectories for call in trajectory.granted_calls]
    videos = [_blocks(group, trajectory) for group in groups for trajectory in group.trajectories_G]
    blocks = list({block.digest: block for shown in videos for block in shown}.values())
    prompts, cached = _prompt_tokens(trajectories)
    return {
        "rollout/trajectories": float(len(trajectories)),
        **{f"rollout/{name}": share for name, share in call_shares(trajectories).items()},
        "rollout/clamped": _mean(bool(call.clamped) for call in granted),
        "rollout/truncated": _mean(t.stop_reason is StopReason.TRUNCATED for t in trajectories),
        "rollout/video_errors": float(sum(t.stop_reason is StopReason.VIDEO_ERROR for t in trajectories)),
        # as calls count them: a zoom's image is one, whatever number of frames its scene repeats it in
        "rollout/frames": _mean(sum(call.num_frames for call in t.granted_calls) for t in trajectories),
        "rollout/visual_tokens": _mean(sum(_visual_tokens(v, pixels_per_token) for v in shown) for shown in videos),
        "rollout/sampled_tokens": _mean(trajectory.sampled_tokens for trajectory in trajectories),
        "rollout/cached_prompt_share": cached / max(prompts, 1),
        "scenes/per_frame": _ratio(blocks, lambda block: block.num_frames),
        "scenes/per_pair": _ratio(blocks, lambda block: (block.num_frames + 1) // 2),
        **{
            f"rollout/seconds/{name}": sum(group.summary.seconds.get(name, 0.0) for group in groups)
            for name in sorted({name for group in groups for name in group.summary.seconds})
        },
        **tool_metrics(trajectories, "rollout/tool/"),
        **tail_metrics(groups),
    }


def tool_metrics(trajectories: Sequence[TrajectorySummary], prefix: str) -> dict[str, float]:
    """What became of the calls of each tool, where any is of another than `span_fps`."""
    calls = [call for trajectory in trajectories for call in trajectory.calls]
    names = sorted({call.tool for call in calls})
    if not set(names) - {SPAN_FPS}:
        return {}
    shares = {"granted": GrantedCall, "malformed": MalformedCall, "refused": RefusedCall}
    return {
        f"{prefix}{name}/{metric}": value
        for name in names
        for metric, value in {
            "calls": sum(call.tool == name for call in calls) / len(trajectories),
            **{
                share: _mean(isinstance(call, kind) for call in calls if call.tool == name)
                for share, kind in shares.items()
            },
        }.items()
    }


def engine_counters_without(counters: Mapping[str, float], groups: Sequence[RemoteGroup]) -> dict[str, float]:
    """What engines did beside these groups: of their counters, by metric, those that the groups' own calls are left out
    of. Which call a video was encoded for is not known: encoded videos stay as they are.
    """
    trajectories = [trajectory for group in groups for trajectory in group.trajectories_G]
    prompts, cached = _prompt_tokens(trajectories)
    own = {
        "engine/requests": sum(len(trajectory.turns) for trajectory in trajectories),
        "engine/prompt_tokens": prompts,
        "engine/cached_prompt_tokens": cached,
        "engine/generated_tokens": sum(trajectory.sampled_tokens for trajectory in trajectories),
        "engine/seconds": sum(group.summary.seconds.get("generate", 0.0) for group in groups),
    }
    found = {name: value for name, value in counters.items() if name.startswith("engine/")}
    return {name: max(0.0, value - own.get(name, 0.0)) for name, value in found.items()}


def tail_metrics(groups: Sequence[RemoteGroup]) -> dict[str, float]:
    """How long the last tenth of the trajectories was waited for: in seconds, and as a share of the rollouts' time.

    Siblings finish with their group. Evenly spread finish times would give a share of a tenth.
    """
    if not groups:
        return {}
    began_s = min(group.origin.sent_s for group in groups)
    finished_s = sorted(group.origin.finished_s for group in groups for _ in group.trajectories_G)
    tail_s = finished_s[-1] - finished_s[math.ceil(0.9 * len(finished_s)) - 1]
    return {"rollout/tail_s": tail_s, "rollout/tail_share": tail_s / max(finished_s[-1] - began_s, 1e-9)}


def call_shares(trajectories: Sequence[TrajectorySummary]) -> dict[str, float]:
    """{"granted_calls", "malformed_calls", "refused_calls"}: of the trajectories the first, of all calls the others."""
    calls = [call for trajectory in trajectories for call in trajectory.calls]
    return {
        "granted_calls": _mean(bool(trajectory.granted_calls) for trajectory in trajectories),
        "malformed_calls": _mean(isinstance(call, MalformedCall) for call in calls),
        "refused_calls": _mean(isinstance(call, RefusedCall) for call in calls),
    }


def staleness_metrics(
    scored: Sequence[ScoredGroup[RemoteGroup]], credit_PG: Sequence[Sequence[Credit]], version: int
) -> dict[str, float]:
    """By how many pushes the weights that sampled the learned tokens were behind those that learned from them.

    Args:
        credit_PG: what each sibling's tokens are credited with (rl.algorithm.batch.learned_credit).
        version: of the weights that learned.
    """
    tokens_of: Counter[int] = Counter()  # by staleness
    for group, credit_G in zip(scored, credit_PG, strict=True):
        for trajectory, credit in zip(group.group.trajectories_G, credit_G, strict=True):
            for index, turn in enumerate(trajectory.turns):
                if credit.of(turn.segment, index) is not None:
                    tokens_of[version - turn.policy_version] += turn.sampled_tokens
    mean = sum(behind * tokens for behind, tokens in tokens_of.items()) / max(tokens_of.total(), 1)
    return {"policy/staleness_mean": mean, "policy/staleness_max": float(max(tokens_of, default=0))}


def min_version(scored: Sequence[ScoredGroup[TrajectoryGroup]]) -> float:
    """The oldest weights that sampled any of the groups; infinity if nothing was sampled."""
    turns = (turn for group in scored for trajectory in group.group.trajectories_G for turn in trajectory.turns)
    return min((turn.completion.policy_version for turn in turns), default=math.inf)


def reward_metrics(scored: Sequence[ScoredGroup]) -> dict[str, float]:
    """Mean rewards per segment and per term; failures counted by cause, never averaged in."""
    outcomes = [outcome for group in scored for outcome in group.rewards_G]
    failures = [outcome for outcome in outcomes if isinstance(outcome, RewardFailure)]
    rewards = [outcome for outcome in outcomes if not isinstance(outcome, RewardFailure)]
    terms = sorted({name for reward in rewards for name in reward.breakdown})
    return {
        "reward/sampling": _mean(reward.sampling for reward in rewards if reward.sampling is not None),
        "reward/reasoning": _mean(reward.reasoning for reward in rewards),
        **{
            f"reward/term/{name}": _mean(reward.breakdown[name] for reward in rewards if name in reward.breakdown)
            for name in terms
        },
        **number_means(rewards, "reward/number/"),
        **_rewards_by_call(rewards),
        "reward/failed": float(len(failures)),
        **{
            f"reward/failed/{cause}": float(sum(failure.cause == cause for failure in failures))
            for cause in sorted({failure.cause for failure in failures})
        },
    }


def number_means(rewards: Sequence[SegmentRewards], prefix: str) -> dict[str, float]:
    """Mean of each number that terms tell beside their scores, over the trajectories that have it."""
    names = sorted({name for reward in rewards for name in reward.numbers})
    return {f"{prefix}{name}": _mean(r.numbers[name] for r in rewards if name in r.numbers) for name in names}


def _rewards_by_call(rewards: Sequence[SegmentRewards]) -> dict[str, float]:
    """Mean sampling reward of all first calls, of all second ones, and so on, where any trajectory has several."""
    most = max((len(reward.calls) for reward in rewards), default=0)
    if most < 2:
        return {}
    return {f"reward/call/{k + 1}": _mean(r.calls[k] for r in rewards if len(r.calls) > k) for k in range(most)}


def _mean(values: Iterable[float]) -> float:
    known = [float(value) for value in values]
    return fmean(known) if known else math.nan


def _blocks(group: RemoteGroup, trajectory: TrajectorySummary) -> list[BlockSummary]:
    """The video history: coarse frames first, then each turn's."""
    shown = (group.summary.coarse_block, *(turn.block for turn in trajectory.turns))
    return [block for block in shown if block is not None]


def _visual_tokens(block: BlockSummary, pixels_per_token: int) -> int:
    return block.num_scenes * block.height * block.width // pixels_per_token


def _ratio(blocks: Sequence[BlockSummary], denominator: Callable[[BlockSummary], int]) -> float:
    total = sum(denominator(block) for block in blocks)
    return sum(block.num_scenes for block in blocks) / total if total else math.nan


def _prompt_tokens(trajectories: Sequence[TrajectorySummary]) -> tuple[int, int]:
    """Prompt tokens of all engine calls, and how many of them came from the prefix cache."""
    prompts = cached = 0
    for trajectory in trajectories:
        length = 0  # of the trajectory so far
        for turn in trajectory.turns:
            prompts += length + turn.context_tokens
            cached += turn.cached_prompt_tokens
            length += turn.context_tokens + turn.sampled_tokens
    return prompts, cached
