"""What a run reports: every number by name, with meaning and unit.

Stages return plain dictionaries {name: float}; names are declared in METRICS, so that a number nobody can explain
cannot be logged. Everything here is ASCII: Ray's gauges take nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rl.tracking.faults import COUNTED

STEP, TIME = "step", "time_s"  # of every line of metrics.jsonl
# counted over steps where numbers are shown as of now: there a gauge would go on showing the one of some step
COUNTERS = (COUNTED, "save/failed", "save/remote_failed")

METRICS: dict[str, tuple[str, str]] = {  # name or prefix/ -> (unit, meaning)
    STEP: ("steps", "done when this was reported"),
    TIME: ("s", "when it was reported, since 1970"),
    "reward/sampling": (
        "0..1",
        "mean reward of the sampling segment over annotated trajectories; a price lowers it below 0",
    ),
    "reward/reasoning": ("0..1", "mean reward of the reasoning segment"),
    "reward/term/": ("0..1", "mean of one reward term, unweighted"),
    "reward/number/": ("1", "mean of a number that a reward tells beside its score, by term and name; counts nowhere"),
    "reward/call/": (
        "0..1",
        "mean sampling reward of the first calls, the second, ..., where trajectories have several",
    ),
    "reward/failed": ("trajectories", "masked because a reward could not be computed"),
    "reward/failed/": ("trajectories", "likewise, by cause"),
    "advantage/": ("std of rewards", "mean absolute advantage over the tokens of a segment"),
    "advantage/cross_credit": ("share", "of the reasoning advantage, given to sampling tokens too; absent where 0"),
    "group/": ("share", "groups whose siblings all got the same reward in a role, or in both"),
    "rollout/trajectories": ("trajectories", "rolled out in this step"),
    "rollout/granted_calls": ("share", "trajectories with at least one granted retrieval call: they looked again"),
    "rollout/malformed_calls": ("share", "of all calls, those whose text could not be read"),
    "rollout/refused_calls": (
        "share",
        "of all calls, readable ones not granted, such as over the limit or outside the clip",
    ),
    "rollout/tool/": (
        "1",
        "of one tool, by its name, where others than span_fps are called: calls per trajectory; of these, the shares "
        "granted, malformed and refused",
    ),
    "rollout/clamped": ("share", "of all granted calls, those whose window, rate or frame count was clamped"),
    "rollout/truncated": ("share", "trajectories that ran out of tokens"),
    "rollout/video_errors": ("trajectories", "masked because the video could not be read"),
    "rollout/frames": ("frames", "retrieved frames per trajectory"),
    "rollout/visual_tokens": ("tokens", "visual tokens per trajectory, coarse frames included"),
    "rollout/sampled_tokens": ("tokens", "tokens the policy wrote per trajectory"),
    "rollout/tokens_per_s": ("1/s", "sampled tokens per second of the rollout stage"),
    "rollout/tail_s": ("s", "from the end of nine tenths of the step's trajectories to the end of the last"),
    "rollout/tail_share": ("share", "that time, of the time from the first request to the last trajectory"),
    "rollout/cached_prompt_share": ("share", "prompt tokens served from the engine's prefix cache"),
    "rollout/seconds/": ("s", "summed over groups: where the rollout workers' time went"),
    "rollout/resampled_groups": ("groups", "zero-variance groups replaced by dynamic sampling"),
    "scenes/per_frame": ("share", "FlexiVideo scenes per frame"),
    "scenes/per_pair": ("share", "FlexiVideo scenes per fixed frame pair, K / ceil(T/2)"),
    "engine/requests": (
        "requests",
        "engine calls since the report before, over all engines; those of evaluations are left out",
    ),
    "engine/prompt_tokens": ("tokens", "prompt tokens of those calls"),
    "engine/cached_prompt_tokens": ("tokens", "of these, served from the prefix cache"),
    "engine/generated_tokens": ("tokens", "sampled"),
    "engine/encoder_items": (
        "videos",
        "video blocks the vision tower encoded; with a lag, those of an evaluation meanwhile included",
    ),
    "engine/seconds": ("s", "summed over calls that ran side by side"),
    "policy/version": ("pushes", "weights the engines run, counted by pushes"),
    "policy/staleness_mean": ("pushes", "by which the weights that sampled a learned token were behind, mean"),
    "policy/staleness_max": ("pushes", "likewise, the most; at most trainer.max_policy_lag"),
    "policy/entropy": ("nat", "entropy per sampled token"),
    "policy/ratio_mean": ("ratio", "current over old probability, mean over learned tokens"),
    "policy/tis_weight_mean": ("ratio", "truncated importance weight, mean over learned tokens"),
    "policy/clip_fraction/": ("share", "learned tokens of a segment whose ratio is clipped"),
    "loss/surrogate": ("advantage", "the clipped surrogate, negated"),
    "loss/kl": ("nat", "k3 estimate of KL to the reference, per the normaliser"),
    "loss/nll": ("nat", "negative log-prob per written token (supervised)"),
    "grad/norm": ("norm", "L2 norm of the gradient before clipping"),
    "parity/compared": ("share", "of the learned tokens, those compared: sampled by the very policy that learned"),
    "parity/": ("nat", "|engine log-prob - learner log-prob| of sampled tokens, per segment"),
    "update/lr": ("1", "learning rate of the last optimizer step"),
    "update/optimizer_steps": ("steps", "optimizer steps taken; 0: nothing to learn, and nothing is pushed"),
    "update/skipped_steps": ("steps", "optimizer steps skipped for a NaN or infinite gradient"),
    "update/tokens": ("tokens", "of all trajectories"),
    "update/computed_tokens": ("tokens", "that went through the policy: what trajectories share counts once"),
    "update/learned_tokens": ("tokens", "learned from"),
    "update/trajectories": ("trajectories", "learned from"),
    "update/micro_batches": ("batches", "forward passes per rank"),
    "update/padding_share": ("share", "of the tokens computed, those there only so that ranks keep in step"),
    "update/shared_prefix_share": ("share", "of all tokens, those not computed since another trajectory begins alike"),
    "update/tower_passes_per_block": ("passes", "of the vision tower for each distinct video block of a rank's share"),
    "update/vision_cache_hits": ("share", "of the blocks asked for, those whose features the frozen tower had kept"),
    "update/vision_cache_bytes": ("bytes", "of features kept, on the rank that keeps most"),
    "update/seconds": ("s", "inside the learner ranks"),
    "update/wait_seconds": (
        "s",
        "a learner rank waited for micro-batches to be prepared, at most in an optimizer step",
    ),
    "update/tokens_per_s": ("1/s", "update/tokens per second inside the learner ranks, all of them together"),
    "update/tokens_per_s_per_rank": ("1/s", "likewise, of one rank: of one GPU, where ranks have GPUs"),
    "update/flops": (
        "FLOP",
        "that the model needs for the update, over all ranks: forward and backward, attention in full, a reference's "
        "forward pass; nothing recomputed, no padding",
    ),
    "update/mfu": ("share", "update/flops of what the learners' GPUs could do in that time, dense bfloat16"),
    "seconds/rollout": (
        "s",
        "from the start of the step's first group to the end of its last; beside other stages, or not",
    ),
    "seconds/reward": ("s", "in which only scores of the step were missing"),
    "seconds/wait": ("s", "the learners waited for groups; of a fine-tuning run, for samples"),
    "seconds/step": ("s", "waiting, learning and pushing"),
    "seconds/": ("s", "wall time of one stage of this step"),
    "idle/engines": ("share", "of the time since the report of the step before, in which an engine had no request"),
    "idle/learners": ("share", "likewise, in which a learner rank did not learn; means over all workers of the kind"),
    "state/": (
        "sha256",
        "fingerprint of what a stage made of this step (rl.tracking.fingerprint); in metrics.jsonl only",
    ),
    "sync/version": ("pushes", "version the engines confirmed"),
    "sync/verified_parameters": ("parameters", "that every engine was sent and holds as the learners do, by checksums"),
    "sync/direct": ("pushes", "1: from device to device; 0: through the object store"),
    "sync/bytes": ("B", "of weights pushed to each engine"),
    "sync/gb_per_s": ("GB/s", "of a push, verification included"),
    "sync/": ("s", "seconds of a push and of its parts"),
    "data/skipped": (
        "examples",
        "of the step's batch whose image or video cannot be used, or that are too long: others stood in for them",
    ),
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
    "disk/free": ("B", "free on the disk of output_dir"),
    "disk/free_share": ("share", "likewise, of the whole disk"),
    "held_out/granted_calls": ("share", "held-out tasks with at least one granted retrieval call"),
    "held_out/malformed_calls": ("share", "of all calls on held-out tasks, those whose text could not be read"),
    "held_out/refused_calls": ("share", "of all calls on held-out tasks, readable ones that were not granted"),
    "held_out/tasks": ("tasks", "evaluated greedily; of a fine-tuning run, conversations"),
    "held_out/failed": ("tasks", "of these, those without a score, or without usable images and videos"),
    "held_out/frames": ("frames", "retrieved per task"),
    "held_out/nll": ("nat", "negative log-prob per assistant token of held-out conversations"),
    "held_out/nll/": ("nat", "likewise, by source"),
    "held_out/tokens": ("tokens", "of the assistant, in held-out conversations"),
    "held_out/number/": ("1", "mean of a number that a reward tells beside its score, by term and name"),
    "held_out/tool/": ("1", "of one tool, by its name: as rollout/tool/, on held-out tasks"),
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
    """Every declared metric, as they are declared: by the stage they are of."""
    return tuple(MetricRow(name, *described) for name, described in METRICS.items())


def current_names(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl by the metric names of today, whichever version wrote it."""
    return {RENAMED_METRICS.get(name, name): value for name, value in line.items()}


def describe(name: str) -> tuple[str, str]:
    """(unit, meaning) of a metric; the longest declared prefix ending in / counts.

    Raises:
        KeyError: it is not declared.
    """
    if name in METRICS:
        return METRICS[name]
    prefixes = [declared for declared in METRICS if declared.endswith("/") and name.startswith(declared)]
    if not prefixes:
        raise KeyError(f"metric {name!r} is not declared in rl.tracking.metrics.METRICS")
    return METRICS[max(prefixes, key=len)]


def ray_name(name: str) -> str:
    """What a metric is called among Ray's: "reward/sampling" is dynframe_reward_sampling."""
    return "dynframe_" + re.sub(r"[^a-zA-Z0-9_]", "_", name)


def prometheus_name(name: str) -> str:
    """What Prometheus finds it under: Ray adds its own name, and to a counter `_total`."""
    return f"ray_{ray_name(name)}{'_total' if name.startswith(COUNTERS) else ''}"
