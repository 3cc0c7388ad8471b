"""A step in short strings: what was read, drawn, scored, credited and learned, bit by bit.

Two runs that write the same fingerprints did the same; where they part, the first fingerprint that differs, in the
order of STAGES or SUPERVISED_STAGES, names the stage that parted them. Floats count by their bits, so nothing is
rounded away. A step's fingerprints say nothing of the steps before it.

Legend: P groups of a step · G siblings of one task.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from rl.algorithm.advantages import Credit
from rl.sha256 import Part, id_bytes, sha256_of
from rl.trajectory import RewardFailure, ScoredGroup, SegmentRewards, TrainingSample, TrajectoryGroup

OF_GROUPS = ("prompts", "tokens", "logprobs")  # digests that come with each group
STAGES = (*OF_GROUPS, "rewards", "advantages", "optimizer", "weights")  # as a step passes them
SUPERVISED_STAGES = ("samples", "loss", "optimizer")  # as a supervised step does
OPTIONAL = "optimizer"  # of either; learner.digest_every leaves steps out
PREFIX = "state/"  # of their names in metrics.jsonl
MARK = "sha256:"  # keeps readers of numbers from taking hexadecimal digits for one
DIGITS = 16


def step_fingerprints(
    scored: Sequence[ScoredGroup], credit_PG: Sequence[Sequence[Credit]], *, optimizer: str, weights: Mapping[str, str]
) -> dict[str, str]:
    """The fingerprints of a step by their names in metrics.jsonl, "state/hash" of all of them last.

    Args:
        scored: the step's groups, in order, as the driver holds them.
        credit_PG: what each sibling's tokens are credited with (rl.algorithm.batch.learned_credit).
        optimizer: LearnerUpdate.optimizer; empty: the step has no such fingerprint.
        weights: checksum of every parameter after the step, by Hugging Face name.
    """
    of_groups = [one.group.summary.digests for one in scored]
    prints = {
        **{stage: fingerprint(digests[stage] for digests in of_groups) for stage in OF_GROUPS},
        "rewards": fingerprint(_outcome(outcome) for group in scored for outcome in group.rewards_G),
        "advantages": fingerprint(
            " ".join(map(_exact, (own.sampling, own.reasoning, *own.calls)))
            for credit_G in credit_PG
            for own in credit_G
        ),
        "optimizer": fingerprint([optimizer]),
        "weights": fingerprint(f"{name} {digest}" for name, digest in sorted(weights.items())),
    }
    return _named(prints, STAGES, optimizer)


def supervised_fingerprints(samples: str, metrics: Mapping[str, float], *, optimizer: str) -> dict[str, str]:
    """Those of a supervised step.

    Args:
        samples: digest of what was learned from (`samples_digest`).
        metrics: of the learners, "loss/nll" and "grad/norm" among them.
        optimizer: digest of the learners' masters and moments after it; empty: the step has no such fingerprint.
    """
    prints = {
        "samples": fingerprint([samples]),
        "loss": fingerprint(_exact(metrics[name]) for name in ("loss/nll", "grad/norm")),
        "optimizer": fingerprint([optimizer]),
    }
    return _named(prints, SUPERVISED_STAGES, optimizer)


def samples_digest(samples: Iterable[TrainingSample]) -> str:
    """Of token ids, of what they are learned with, and of the names of the frames, sample by sample."""
    return sha256_of(part for sample in samples for part in _sample(sample))


def group_digests(group: TrajectoryGroup) -> dict[str, str]:
    """What a group was given and what was drawn, by stage: computed where its tokens are."""
    turns = [turn for trajectory in group.trajectories_G for turn in trajectory.turns]
    return {
        "prompts": sha256_of(_prompts(group)),
        "tokens": sha256_of(id_bytes(turn.completion.token_ids) for turn in turns),
        "logprobs": sha256_of(_floats(turn.completion.logprobs) for turn in turns),
    }


def first_difference(ours: Mapping[str, object], theirs: Mapping[str, object]) -> str | None:
    """The first stage whose fingerprints differ or are missing, of two lines of metrics.jsonl; None: none does.

    The optimizer's may be missing in both. A line with a fingerprint of samples is one of a supervised step.
    """
    is_supervised = any(f"{PREFIX}{SUPERVISED_STAGES[0]}" in line for line in (ours, theirs))
    for stage in SUPERVISED_STAGES if is_supervised else STAGES:
        mine, other = (line.get(f"{PREFIX}{stage}") for line in (ours, theirs))
        if mine != other or (mine is None and stage != OPTIONAL):
            return stage
    return None


def fingerprint(parts: Iterable[Part]) -> str:
    """ "sha256:" and 16 hexadecimal digits over a sequence of parts; where one part ends and the next begins counts."""
    return f"{MARK}{sha256_of(parts)[:DIGITS]}"


def _named(prints: Mapping[str, str], stages: Sequence[str], optimizer: str) -> dict[str, str]:
    """By their names in metrics.jsonl, the one of all of them last."""
    named = {f"{PREFIX}{stage}": prints[stage] for stage in stages if optimizer or stage != OPTIONAL}
    return named | {f"{PREFIX}hash": fingerprint(named.values())}


def _sample(sample: TrainingSample) -> Iterator[Part]:
    yield from map(id_bytes, (sample.token_ids, sample.segment_ids, sample.loss_mask))
    yield _floats(sample.advantages)
    yield " ".join(frames.digest for frames in sample.videos)


def _prompts(group: TrajectoryGroup) -> Iterator[Part]:
    """What every turn was given: token ids and the names of the frames, by task and sibling."""
    yield f"task {group.task.task_id}"
    yield group.coarse_frames.digest if group.coarse_frames else ""
    for trajectory in group.trajectories_G:
        yield f"{len(trajectory.turns)} turns, {trajectory.stop_reason}"
        for turn in trajectory.turns:
            yield id_bytes(turn.context_token_ids)
            yield turn.frames.digest if turn.frames else ""


def _outcome(outcome: SegmentRewards | RewardFailure) -> str:
    """A failure's detail is left out: it may tell seconds or places in memory."""
    if isinstance(outcome, RewardFailure):
        return json.dumps(["failed", outcome.term, outcome.cause])
    terms = sorted((name, _exact(value)) for name, value in outcome.breakdown.items())
    return json.dumps([_exact(outcome.sampling), _exact(outcome.reasoning), terms])


def _exact(value: float | None) -> str:
    return "none" if value is None else float(value).hex()


def _floats(values: Sequence[float]) -> bytes:
    return np.asarray(values, dtype="<f8").tobytes()
