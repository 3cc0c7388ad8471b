"""What a run reports: every number by name, with meaning and unit.

Stages return plain dictionaries {name: float}; names are declared in METRICS, so that a number nobody can explain
cannot be logged.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rl.trajectory import (
    Frames,
    MalformedCall,
    RefusedCall,
    RewardFailure,
    ScoredGroup,
    StopReason,
    Trajectory,
    TrajectoryGroup,
    trajectory_tokens,
    trajectory_videos,
)

METRICS: dict[str, tuple[str, str]] = {  # name or prefix/ -> (unit, meaning)
    "reward/sampling": ("0..1", "mean reward of the sampling segment over annotated trajectories"),
    "reward/reasoning": ("0..1", "mean reward of the reasoning segment"),
    "reward/term/": ("0..1", "mean of one reward term, unweighted"),
    "reward/failed": ("trajectories", "masked because a reward could not be computed"),
    "reward/failed/": ("trajectories", "likewise, by cause"),
    "advantage/": ("std of rewards", "mean absolute advantage over the tokens of a segment"),
    "group/": ("share", "groups whose siblings all got the same reward in a role, or in both"),
    "rollout/trajectories": ("trajectories", "rolled out in this step"),
    "rollout/granted_calls": ("share", "trajectories with at least one granted retrieval call: they looked again"),
    "rollout/malformed_calls": ("share", "of all calls, those whose text could not be read"),
    "rollout/refused_calls": (
        "share",
        "of all calls, readable ones not granted, such as over the limit or outside the clip",
    ),
    "rollout/clamped": ("share", "of all granted calls, those whose window, rate or frame count was clamped"),
    "rollout/truncated": ("share", "trajectories that ran out of tokens"),
    "rollout/video_errors": ("trajectories", "masked because the video could not be read"),
    "rollout/frames": ("frames", "retrieved frames per trajectory"),
    "rollout/visual_tokens": ("tokens", "visual tokens per trajectory, coarse frames included"),
    "rollout/sampled_tokens": ("tokens", "tokens the policy wrote per trajectory"),
    "rollout/tokens_per_s": ("1/s", "sampled tokens per second of the rollout stage"),
    "rollout/cached_prompt_share": ("share", "prompt tokens served from the engine's prefix cache"),
    "rollout/seconds/": ("s", "summed over groups: where the rollout workers' time went"),
    "rollout/resampled_groups": ("groups", "zero-variance groups replaced by dynamic sampling"),
    "scenes/per_frame": ("share", "FlexiVideo scenes per frame"),
    "scenes/per_pair": ("share", "FlexiVideo scenes per fixed frame pair, K / ceil(T/2)"),
    "engine/requests": ("requests", "engine calls of the step, over all engines"),
    "engine/prompt_tokens": ("tokens", "prompt tokens of those calls"),
    "engine/cached_prompt_tokens": ("tokens", "of these, served from the prefix cache"),
    "engine/generated_tokens": ("tokens", "sampled"),
    "engine/encoder_items": ("videos", "video blocks the vision tower encoded"),
    "engine/seconds": ("s", "summed over calls that ran side by side"),
    "policy/version": ("pushes", "weights the engines run, counted by pushes"),
    "policy/entropy": ("nat", "entropy per sampled token"),
    "policy/ratio_mean": ("ratio", "current over old probability, mean over learned tokens"),
    "policy/tis_weight_mean": ("ratio", "truncated importance weight, mean over learned tokens"),
    "policy/clip_fraction/": ("share", "learned tokens of a segment whose ratio is clipped"),
    "loss/surrogate": ("advantage", "the clipped surrogate, negated"),
    "loss/kl": ("nat", "k3 estimate of KL to the reference, per the normaliser"),
    "loss/nll": ("nat", "negative log-prob per written token (supervised)"),
    "grad/norm": ("norm", "L2 norm of the gradient before clipping"),
    "parity/": ("nat", "|engine log-prob - learner log-prob| of sampled tokens, per segment"),
    "update/lr": ("1", "learning rate of the last optimizer step"),
    "update/skipped_steps": ("steps", "optimizer steps skipped for a NaN or infinite gradient"),
    "update/tokens": ("tokens", "processed, padding left out"),
    "update/learned_tokens": ("tokens", "learned from"),
    "update/trajectories": ("trajectories", "learned from"),
    "update/micro_batches": ("batches", "forward passes per rank"),
    "update/padding_share": ("share", "of the tokens processed, those that are padding"),
    "update/seconds": ("s", "inside the learner ranks"),
    "seconds/": ("s", "wall time of one stage of this step"),
    "state/": (
        "sha256",
        "fingerprint of what a stage made of this step (rl.tracking.fingerprint); in metrics.jsonl only",
    ),
    "sync/version": ("pushes", "version the engines confirmed"),
    "sync/verified_parameters": ("parameters", "read back from every engine and found equal"),
    "sync/bytes": ("B", "of weights pushed to each engine"),
    "sync/gb_per_s": ("GB/s", "of a push, verification included"),
    "sync/": ("s", "seconds of a push and of its parts"),
    "faults/": ("faults", "of a kind that were recovered from during the step (faults.jsonl has each)"),
    "memory/rollout_device": ("MiB", "held on its GPU by the engine that holds most"),
    "memory/rollout_slope": ("MiB", "growth of the worst rollout worker per step since it was warm, least squares"),
    "save/copy_seconds": ("s", "the run stood still while a checkpoint was copied in memory"),
    "save/wait_seconds": ("s", "the run stood still because the checkpoint before was not written yet"),
    "save/write_seconds": ("s", "from the copy until the checkpoint was published, beside the run"),
    "save/bytes": ("B", "of the checkpoint"),
    "save/failed": ("checkpoints", "could not be saved since the step before; the previous one stays"),
    "save/remote_seconds": ("s", "copying checkpoints to trainer.remote, beside the run"),
    "save/remote_failed": ("attempts", "to copy checkpoints to trainer.remote; repeated after the next save"),
    "memory/": ("MiB", "resident memory of its own, by kind of process (largest of its kind)"),
    "held_out/granted_calls": ("share", "held-out tasks with at least one granted retrieval call"),
    "held_out/malformed_calls": ("share", "of all calls on held-out tasks, those whose text could not be read"),
    "held_out/refused_calls": ("share", "of all calls on held-out tasks, readable ones that were not granted"),
    "held_out/tasks": ("tasks", "evaluated greedily"),
    "held_out/failed": ("tasks", "of these, those without a score"),
    "held_out/frames": ("frames", "retrieved per task"),
    "held_out/": ("0..1", "means over held-out tasks: rewards, their terms, accuracy"),
}

RENAMED_METRICS: dict[str, str] = {  # of earlier versions; what reads their files takes the name of today
    "group/degenerate_both": "group/zero_variance_both",  # 0.3.0
    "group/degenerate_reasoning": "group/zero_variance_reasoning",
    "group/degenerate_sampling": "group/zero_variance_sampling",
    "held_out/calls": "held_out/granted_calls",  # counted malformed calls, too
    "rollout/calls": "rollout/granted_calls",  # likewise
    "rollout/malformed": "rollout/malformed_calls",  # counted refused calls, too
    "scenes/k_over_pairs": "scenes/per_pair",
    "scenes/k_over_t": "scenes/per_frame",
}


@dataclass(frozen=True, slots=True)
class MetricRow:
    """A declared metric, as the reference lists it."""

    name: str  # one that ends in / stands for all that begin with it
    unit: str
    meaning: str


def metrics_reference() -> tuple[MetricRow, ...]:
    """Every declared metric, by name."""
    return tuple(MetricRow(name, *METRICS[name]) for name in sorted(METRICS))


def current_names(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl by the metric names of today, whichever version wrote it."""
    return {RENAMED_METRICS.get(name, name): value for name, value in line.items()}


def describe(name: str) -> tuple[str, str]:
    """(unit, meaning) of a metric; the longest declared prefix ending in / counts.

    Raises:
        KeyError: nobody declared it.
    """
    if name in METRICS:
        return METRICS[name]
    prefixes = [declared for declared in METRICS if declared.endswith("/") and name.startswith(declared)]
    if not prefixes:
        raise KeyError(f"metric {name!r} is not declared in rl.tracking.metrics.METRICS")
    return METRICS[max(prefixes, key=len)]


def rollout_metrics(groups: Sequence[TrajectoryGroup], *, pixels_per_token: int) -> dict[str, float]:
    """What the policy did, averaged over trajectories.

    Args:
        pixels_per_token: pixels of one visual token, (patch * merge)^2.
    """
    episodes = [(group, trajectory) for group in groups for trajectory in group.trajectories_G]
    trajectories = [trajectory for _, trajectory in episodes]
    granted = [call for trajectory in trajectories for call in trajectory.granted_calls]
    videos = [trajectory_videos(group.coarse_frames, trajectory.turns) for group, trajectory in episodes]
    blocks = _distinct_blocks(videos)
    prompts, cached = _prompt_tokens(trajectories)
    return {
        "rollout/trajectories": float(len(trajectories)),
        **{f"rollout/{name}": share for name, share in call_shares(trajectories).items()},
        "rollout/clamped": _mean(bool(call.clamped) for call in granted),
        "rollout/truncated": _mean(t.stop_reason is StopReason.TRUNCATED for t in trajectories),
        "rollout/video_errors": float(sum(t.stop_reason is StopReason.VIDEO_ERROR for t in trajectories)),
        "rollout/frames": _mean(sum(v.num_frames for v in shown[1:]) for shown in videos),
        "rollout/visual_tokens": _mean(sum(_visual_tokens(v, pixels_per_token) for v in shown) for shown in videos),
        "rollout/sampled_tokens": _mean(_sampled_tokens(trajectory) for trajectory in trajectories),
        "rollout/cached_prompt_share": cached / max(prompts, 1),
        "scenes/per_frame": _ratio(blocks, lambda block: block.num_frames),
        "scenes/per_pair": _ratio(blocks, lambda block: (block.num_frames + 1) // 2),
        **{
            f"rollout/seconds/{name}": sum(group.seconds.get(name, 0.0) for group in groups)
            for name in sorted({name for group in groups for name in group.seconds})
        },
    }


def call_shares(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """{"granted_calls", "malformed_calls", "refused_calls"}: of the trajectories the first, of all calls the others."""
    calls = [call for trajectory in trajectories for call in trajectory.calls]
    return {
        "granted_calls": _mean(bool(trajectory.granted_calls) for trajectory in trajectories),
        "malformed_calls": _mean(isinstance(call, MalformedCall) for call in calls),
        "refused_calls": _mean(isinstance(call, RefusedCall) for call in calls),
    }


def reward_metrics(scored: Sequence[ScoredGroup]) -> dict[str, float]:
    """Mean rewards per segment and per term; failures counted by cause, never averaged in."""
    verdicts = [verdict for group in scored for verdict in group.rewards_G]
    failures = [verdict for verdict in verdicts if isinstance(verdict, RewardFailure)]
    rewards = [verdict for verdict in verdicts if not isinstance(verdict, RewardFailure)]
    terms = sorted({name for reward in rewards for name in reward.breakdown})
    return {
        "reward/sampling": _mean(reward.sampling for reward in rewards if reward.sampling is not None),
        "reward/reasoning": _mean(reward.reasoning for reward in rewards),
        **{
            f"reward/term/{name}": _mean(reward.breakdown[name] for reward in rewards if name in reward.breakdown)
            for name in terms
        },
        "reward/failed": float(len(failures)),
        **{
            f"reward/failed/{cause}": float(sum(failure.cause == cause for failure in failures))
            for cause in sorted({failure.cause for failure in failures})
        },
    }


class StageClock:
    """Seconds per stage of one step: `with clock("rollout"): ...`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    def metrics(self) -> dict[str, float]:
        """{"seconds/<stage>": s}, and their sum."""
        named = {f"seconds/{stage}": seconds for stage, seconds in self.seconds.items()}
        return named | {"seconds/step": sum(self.seconds.values())}


def _mean(values: Iterator[float]) -> float:
    values = [float(value) for value in values]
    return fmean(values) if values else math.nan


def _sampled_tokens(trajectory: Trajectory) -> int:
    return sum(len(turn.completion.token_ids) for turn in trajectory.turns)


def _visual_tokens(frames: Frames, pixels_per_token: int) -> int:
    return len(frames.scene_lengths) * frames.height * frames.width // pixels_per_token


def _distinct_blocks(videos: Sequence[Sequence[Frames]]) -> list[Frames]:
    return list({block.digest: block for shown in videos for block in shown}.values())


def _ratio(blocks: Sequence[Frames], denominator: Any) -> float:
    total = sum(denominator(block) for block in blocks)
    return sum(len(block.scene_lengths) for block in blocks) / total if total else math.nan


def _prompt_tokens(trajectories: Sequence[Trajectory]) -> tuple[int, int]:
    """Prompt tokens of all engine calls, and how many of them came from the prefix cache."""
    prompts = cached = 0
    for trajectory in trajectories:
        ledger = 0
        for turn in trajectory.turns:
            ledger += len(turn.context_token_ids)
            prompts += ledger
            cached += turn.completion.cached_prompt_tokens
            ledger += len(turn.completion.token_ids)
        assert ledger == len(trajectory_tokens(trajectory))
    return prompts, cached
