"""From a group to its scores: every term on every sibling, weighted per segment. All logic of a reward worker.

Legend: G siblings of one task.

What the policy did badly scores 0; what could not be computed is a RewardFailure that names the term.
"""

from __future__ import annotations

import inspect
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rewards.failures import call_reward, defined_at, locate
from rewards.limits import Guard
from rl.trajectory import (
    ErrorLocation,
    RetrievalCall,
    RewardFailure,
    ScoredGroup,
    Segment,
    SegmentRewards,
    StopReason,
    Trajectory,
    TrajectoryGroup,
    VideoTask,
)
from rl.user_code.errors import is_from_signal, message

LARGEST = 1e30  # of a score: its square and its advantage in float32 are finite

TermScores = Mapping[str, float | None]  # by term; None: the term does not apply to this task


@dataclass(frozen=True, slots=True)
class WeightedReward:
    """One reward term: its function, the segment it credits, and how much it counts there."""

    name: str
    fn: Callable[..., float | None]
    segment: Segment
    weight: float = 1.0  # relative: those that apply in a segment are normalised to sum to 1; 0: logged, not counted


class _Failed(Exception):
    """Carries a RewardFailure from the term that caused it to the trajectory it concerns."""

    def __init__(self, term: str, cause: str, detail: str, location: ErrorLocation | None = None) -> None:
        super().__init__(detail)
        self.term, self.cause, self.detail, self.location = term, cause, detail, location

    def on(self, task: VideoTask) -> RewardFailure:
        return RewardFailure(self.term, self.cause, self.detail, task.task_id, self.location)


@dataclass(frozen=True, slots=True)
class _Unweighted:
    """Every term's score of one trajectory, before weighting."""

    looks: tuple[TermScores | None, ...]  # one per call, in order; None: not granted
    reasoning: TermScores


def score_group(
    group: TrajectoryGroup,
    terms: Sequence[WeightedReward],
    calls: str = "mean",
    guard: Guard = nullcontext,
) -> ScoredGroup:
    """Score every sibling.

    R_samp: the weighted mean of the sampling terms over a call, then `calls` of that over a trajectory's calls; a
    call that is not granted and no call score 0. None if the task has no evidence span, or no sampling term counts.
    R_reason: the weighted mean of the reasoning terms; 0 for everybody if none is configured to count.
    A term that returns None on all siblings does not apply to this task, and the others share its weight; None on some
    of them only is a bug of the term, and those trajectories fail. A video that could not be read is a failure too
    (cause "video_error"), and so is a trajectory without turns ("no_turns"): masked and counted, never scored.

    Args:
        calls: mean | last | max: R_samp of a trajectory with several calls.
        guard: context manager around each call of a reward function; a TimeoutError raised in it is cause "timeout".
    Raises:
        ValueError: unknown `calls`.
    """
    if calls not in COMBINED:
        raise ValueError(f"scoring.calls must be one of {', '.join(COMBINED)}, got {calls!r}")
    sampling = [t for t in terms if t.segment is Segment.SAMPLING and group.task.evidence_span is not None]
    reasoning = [t for t in terms if t.segment is Segment.REASONING]
    unweighted_G = [_score(group.task, trajectory, sampling, reasoning, guard) for trajectory in group.trajectories_G]
    computed = [unweighted for unweighted in unweighted_G if isinstance(unweighted, _Unweighted)]
    sampling_here = _applicable(sampling, [look for scores in computed for look in scores.looks if look is not None])
    reasoning_here = _applicable(reasoning, [scores.reasoning for scores in computed])
    if _counts(reasoning) and not _counts(reasoning_here):
        failure = RewardFailure("*", "not_a_number", "no reasoning reward applies to this task", group.task.task_id)
        return ScoredGroup(group, tuple(failure if isinstance(j, _Unweighted) else j for j in unweighted_G))
    return ScoredGroup(
        group, tuple(_weigh(group.task, each, sampling_here, reasoning_here, calls) for each in unweighted_G)
    )


def _applicable(terms: Sequence[WeightedReward], scores: Sequence[TermScores]) -> list[WeightedReward]:
    """Terms that gave a number at least once (all of them if there was nothing to score)."""
    return [term for term in terms if not scores or any(s[term.name] is not None for s in scores)]


def _counts(terms: Sequence[WeightedReward]) -> bool:
    return sum(term.weight for term in terms) > 0


def _score(
    task: VideoTask,
    trajectory: Trajectory,
    sampling: Sequence[WeightedReward],
    reasoning: Sequence[WeightedReward],
    guard: Guard,
) -> _Unweighted | RewardFailure:
    if trajectory.stop_reason is StopReason.VIDEO_ERROR:
        return RewardFailure("*", "video_error", trajectory.note, task.task_id)
    if not trajectory.turns:
        return RewardFailure("*", "no_turns", trajectory.note or "the policy was never asked", task.task_id)

    def ask(terms: Sequence[WeightedReward], scored: RetrievalCall | Trajectory) -> TermScores:
        return {term.name: _ask(term, task, scored, guard) for term in terms}

    try:
        looks = tuple(ask(sampling, call) if isinstance(call, RetrievalCall) else None for call in trajectory.calls)
        return _Unweighted(looks, ask(reasoning, trajectory))
    except _Failed as failed:
        return failed.on(task)


def _ask(term: WeightedReward, task: VideoTask, scored: RetrievalCall | Trajectory, guard: Guard) -> float | None:
    """One value from one term. Whatever goes wrong inside a user's function becomes a failure that names it."""
    try:
        with guard():
            value = call_reward(term.fn, task, scored)
            return None if value is None else _number(term, value)
    except _Failed:
        raise
    except TimeoutError as error:
        raise _Failed(term.name, "timeout", str(error), locate(error)) from error
    except MemoryError as error:  # numpy's own kind is one, too
        raise _Failed(term.name, "memory", message(error), locate(error)) from error
    except BaseException as error:  # a reward that calls sys.exit ends its call, not its worker
        if is_from_signal(error):
            raise
        raise _Failed(term.name, "raised", message(error), locate(error) or defined_at(term.fn)) from error


def _number(term: WeightedReward, value: Any) -> float:
    """A value as a float: any one real number, a boolean and numpy's and torch's scalars too, but no text."""
    try:
        number = float(value) if _is_real(value) else None
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError, RuntimeError, ArithmeticError):  # arrays with several elements; a signalling NaN
        number = None
    if number is None:
        if inspect.iscoroutine(value):
            value.close()  # or Python warns that it was never awaited
        detail = f"returned {type(value).__name__}: {_briefly(value)}"
        raise _Failed(term.name, "not_a_number", detail, defined_at(term.fn))
    if not abs(number) <= LARGEST:
        shown = f"{number}" if isinstance(value, float) else f"{_briefly(value)}, as a float {number}"
        raise _Failed(term.name, "not_finite", f"returned {shown}", defined_at(term.fn))
    return number


def _is_real(value: Any) -> bool:
    """Whether float() would take a number for one: never "1.0", nor the real part of a complex number."""
    dtype = getattr(value, "dtype", None)
    is_other = getattr(dtype, "kind", "") in ("c", "S", "U") or getattr(dtype, "is_complex", False)  # numpy's, torch's
    return hasattr(value, "__float__") and not isinstance(value, str | bytes | complex) and not is_other


def _briefly(value: Any) -> str:
    """A value of any size, which may fail while it is shown."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    try:
        return reprlib.repr(value)
    except Exception as error:
        return f"(it cannot be shown: {type(error).__name__})"


def _weigh(
    task: VideoTask,
    unweighted: _Unweighted | RewardFailure,
    sampling: Sequence[WeightedReward],
    reasoning: Sequence[WeightedReward],
    calls: str,
) -> SegmentRewards | RewardFailure:
    if isinstance(unweighted, RewardFailure):
        return unweighted
    zero = {term.name: 0.0 for term in sampling}  # no call, or one that could not be granted
    scores = [(sampling, look) for look in unweighted.looks if look is not None] + [(reasoning, unweighted.reasoning)]
    for terms, by_term in scores:
        for term in terms:
            if by_term[term.name] is None:
                why = "returned None here, but a number for a sibling"
                return RewardFailure(term.name, "not_a_number", why, task.task_id, defined_at(term.fn))
    looks = [zero if look is None else {name: look[name] for name in zero} for look in unweighted.looks] or [zero]
    look = COMBINED[calls](looks, sampling)
    answer = {term.name: unweighted.reasoning[term.name] for term in reasoning}
    return SegmentRewards(
        sampling=_weighted_mean(look, sampling) if _counts(sampling) else None,
        reasoning=_weighted_mean(answer, reasoning) if _counts(reasoning) else 0.0,
        breakdown=look | answer,
    )


def _weighted_mean(scores: TermScores, terms: Sequence[WeightedReward]) -> float:
    return sum(term.weight * scores[term.name] for term in terms) / sum(term.weight for term in terms)


def _mean_look(looks: Sequence[TermScores], terms: Sequence[WeightedReward]) -> dict[str, float]:
    return {term.name: fmean(look[term.name] for look in looks) for term in terms}


def _last_look(looks: Sequence[TermScores], terms: Sequence[WeightedReward]) -> dict[str, float]:
    return dict(looks[-1])


def _best_look(looks: Sequence[TermScores], terms: Sequence[WeightedReward]) -> dict[str, float]:
    return dict(max(looks, key=lambda look: _weighted_mean(look, terms) if _counts(terms) else 0.0))


COMBINED = {"mean": _mean_look, "last": _last_look, "max": _best_look}  # several calls -> one score per term
