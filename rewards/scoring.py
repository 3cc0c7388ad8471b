"""From a group to its scores: every term on every sibling, weighted per segment. All logic of a reward worker.

Legend: G siblings of one task.

What the policy did badly scores 0; what could not be computed is a RewardFailure that names the term.
"""

from __future__ import annotations

import inspect
import math
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any

from rewards.asking import UnusableError, ask
from rewards.background_loop import Raised
from rewards.failures import TOOL_ERROR, defined_at, locate
from rewards.limits import Guard
from rl.trajectory import (
    Call,
    GrantedCall,
    RewardFailure,
    ScoredGroup,
    Segment,
    SegmentRewards,
    StopReason,
    Trajectory,
    TrajectoryGroup,
    VideoTask,
)
from rl.user_code.errors import message

SCORE = "score"  # of a reward that returns a mapping; what else is in it becomes a metric
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # of a number beside the score
NOT_GRANTED = 0.0  # what every term of its tool gives a call that could not be read or was refused
LARGEST = 1e30  # of a score: its square and its advantage in float32 are finite

TermScores = Mapping[str, float | None]  # by term; None: the term does not apply to this task; of a call: by its tool's


@dataclass(frozen=True, slots=True)
class WeightedReward:
    """One reward term: its function, the segment it credits, and how much it counts there."""

    name: str
    fn: Callable[..., float | None]
    segment: Segment
    weight: float = 1.0  # relative: those that apply in a segment are normalised to sum to 1; 0: logged, not counted
    calls: str = ""  # mean | last | max | sum: what several calls make of it; empty: as score_group's `calls` says
    tool: str = ""  # whose calls a sampling term scores; empty: every tool's

    def scores(self, call: Call) -> bool:
        """Whether a call is of its tool."""
        return self.tool in ("", call.tool)


@dataclass(frozen=True, slots=True)
class _Value:
    """What a term makes of one call or trajectory."""

    score: float | None
    numbers: Mapping[str, float] = field(default_factory=dict)  # others that it tells, by name


@dataclass(frozen=True, slots=True)
class _Unweighted:
    """Every term's score of one trajectory, before weighting."""

    looks: tuple[TermScores, ...]  # one per call, in order, by the terms of its tool; 0 where it is not granted
    granted: tuple[bool, ...]  # of each call
    reasoning: TermScores
    numbers: Mapping[str, float]  # other numbers, by term and name


def score_group(
    group: TrajectoryGroup,
    terms: Sequence[WeightedReward],
    calls: str = "mean",
    guard: Guard = nullcontext,
) -> ScoredGroup:
    """Score every sibling.

    R_samp: the weighted mean of the sampling terms over a call, then `calls` of that over a trajectory's calls (a term
    with `calls` of its own: that); a call that is not granted and no call score 0. None if the task has no evidence
    span, or no sampling term counts. A call is scored by the terms of its tool; where a trajectory calls several tools,
    each term is combined over the calls that it scores.
    R_reason: the weighted mean of the reasoning terms; 0 for everybody if none is configured to count.
    A term that returns None on all siblings does not apply to this task, and the others share its weight; None on some
    of them only is a bug of the term, and those trajectories fail. A video that could not be read is a failure too
    (cause "video_error"), and so is a trajectory without turns ("no_turns"): masked and counted, never scored.
    A function may be async, or score all siblings in one call (rewards.asking); a mapping that it returns has its
    `score`, and other numbers that become metrics.

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
    unweighted_G = _score(group.task, group.trajectories_G, sampling, reasoning, guard)
    computed = [unweighted for unweighted in unweighted_G if isinstance(unweighted, _Unweighted)]
    granted = [look for own in computed for look, is_so in zip(own.looks, own.granted, strict=True) if is_so]
    sampling_here = _applicable(sampling, granted)
    reasoning_here = _applicable(reasoning, [scores.reasoning for scores in computed])
    if _counts(reasoning) and not _counts(reasoning_here):
        failure = RewardFailure("*", "not_a_number", "no reasoning reward applies to this task", group.task.task_id)
        return ScoredGroup(group, tuple(failure if isinstance(j, _Unweighted) else j for j in unweighted_G))
    return ScoredGroup(
        group, tuple(_weigh(group.task, each, sampling_here, reasoning_here, calls) for each in unweighted_G)
    )


def _applicable(terms: Sequence[WeightedReward], scores: Sequence[TermScores]) -> list[WeightedReward]:
    """Terms that gave a number at least once (also those that had nothing to score)."""
    own = {term.name: [s[term.name] for s in scores if term.name in s] for term in terms}
    return [term for term in terms if not own[term.name] or any(value is not None for value in own[term.name])]


def _counts(terms: Sequence[WeightedReward]) -> bool:
    return sum(term.weight for term in terms) > 0


def _score(
    task: VideoTask,
    trajectories_G: Sequence[Trajectory],
    sampling: Sequence[WeightedReward],
    reasoning: Sequence[WeightedReward],
    guard: Guard,
) -> list[_Unweighted | RewardFailure]:
    """Term by term, over all siblings that none has failed on."""
    failed = {sibling: why for sibling, one in enumerate(trajectories_G) if (why := _unscorable(task, one)) is not None}
    values: dict[tuple[int, str], list[_Value]] = {}  # by sibling and term, of each call, or of the trajectory
    for term in (*sampling, *reasoning):
        asked = [sibling for sibling in range(len(trajectories_G)) if sibling not in failed]
        scored_GC = [_scored_by(term, trajectories_G[sibling]) for sibling in asked]
        for sibling, outcome in zip(asked, ask(term.fn, task, scored_GC, guard, partial(_value, term)), strict=True):
            if isinstance(outcome, Raised):
                failed[sibling] = _failure(term, outcome.error, task)
            else:
                values[sibling, term.name] = outcome
    return [
        failed[sibling] if sibling in failed else _unweighted(sibling, trajectory, sampling, reasoning, values)
        for sibling, trajectory in enumerate(trajectories_G)
    ]


def _unscorable(task: VideoTask, trajectory: Trajectory) -> RewardFailure | None:
    if trajectory.stop_reason is StopReason.VIDEO_ERROR:
        return RewardFailure("*", "video_error", trajectory.note, task.task_id)
    if (failed := trajectory.tool_failure) is not None:
        return RewardFailure(failed.tool, TOOL_ERROR, failed.detail, task.task_id, failed.location)
    if not trajectory.turns:
        return RewardFailure("*", "no_turns", trajectory.note or "the policy was never asked", task.task_id)
    return None


def _scored_by(term: WeightedReward, trajectory: Trajectory) -> Sequence[GrantedCall | Trajectory]:
    if term.segment is not Segment.SAMPLING:
        return (trajectory,)
    return tuple(call for call in trajectory.granted_calls if term.scores(call))


def _unweighted(
    sibling: int,
    trajectory: Trajectory,
    sampling: Sequence[WeightedReward],
    reasoning: Sequence[WeightedReward],
    values: Mapping[tuple[int, str], Sequence[_Value]],
) -> _Unweighted:
    of_calls = {term.name: iter(values[sibling, term.name]) for term in sampling}
    looks = tuple(
        {
            term.name: next(of_calls[term.name]).score if isinstance(call, GrantedCall) else NOT_GRANTED
            for term in sampling
            if term.scores(call)
        }
        for call in trajectory.calls
    )
    answer = {term.name: values[sibling, term.name][0].score for term in reasoning}
    numbers: dict[str, list[float]] = {}
    for term in (*sampling, *reasoning):
        for value in values[sibling, term.name]:
            for name, number in value.numbers.items():
                numbers.setdefault(f"{term.name}/{name}", []).append(number)
    granted = tuple(isinstance(call, GrantedCall) for call in trajectory.calls)
    return _Unweighted(looks, granted, answer, {name: fmean(of_calls) for name, of_calls in numbers.items()})


def _failure(term: WeightedReward, error: BaseException, task: VideoTask) -> RewardFailure:
    """Whatever goes wrong inside a user's function becomes a failure that names it."""
    if isinstance(error, UnusableError):
        cause, detail, location = error.cause, str(error), defined_at(term.fn)
    elif isinstance(error, TimeoutError):
        cause, detail, location = "timeout", str(error), locate(error)
    elif isinstance(error, MemoryError):  # numpy's own kind is one, too
        cause, detail, location = "memory", message(error), locate(error)
    else:
        cause, detail, location = "raised", message(error), locate(error) or defined_at(term.fn)
    return RewardFailure(term.name, cause, detail, task.task_id, location)


def _value(term: WeightedReward, returned: Any) -> _Value:
    """What a function has returned: a number, None, or a mapping of its `score` and of other numbers.

    Raises:
        UnusableError: it is something else.
    """
    if not isinstance(returned, Mapping) or SCORE not in returned:
        return _Value(None if returned is None else _number(returned))
    others = {name: _number(number, f" as {name!r}") for name, number in returned.items() if name != SCORE}
    if odd := [name for name in others if not isinstance(name, str) or not NAME.fullmatch(name)]:
        raise UnusableError("not_a_number", f"returned a number under {_briefly(odd[0])}: a name is of {NAME.pattern}")
    score = returned[SCORE]
    return _Value(None if score is None else _number(score, f" as {SCORE!r}"), others)


def _number(value: Any, where: str = "") -> float:
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
        raise UnusableError("not_a_number", f"returned {type(value).__name__}{where}: {_briefly(value)}")
    if not abs(number) <= LARGEST:
        shown = f"{number}" if isinstance(value, float) else f"{_briefly(value)}, as a float {number}"
        raise UnusableError("not_finite", f"returned {shown}{where}")
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
    scores = [(sampling, look) for look in unweighted.looks] + [(reasoning, unweighted.reasoning)]
    for terms, by_term in scores:
        for term in terms:
            if by_term.get(term.name, 0.0) is None:
                why = "returned None here, but a number for a sibling"
                return RewardFailure(term.name, "not_a_number", why, task.task_id, defined_at(term.fn))
    applied = {term.name for term in sampling}
    looks = [{name: score for name, score in look.items() if name in applied} for look in unweighted.looks]
    looks = looks or [{term.name: 0.0 for term in sampling}]  # no call
    by_call = tuple(_weighted_mean(look, sampling) for look in looks) if unweighted.looks and _counts(sampling) else ()
    look = _combined(looks, sampling, calls)
    answer = {term.name: unweighted.reasoning[term.name] for term in reasoning}
    return SegmentRewards(
        sampling=_weighted_mean(look, sampling) if _counts(sampling) else None,
        reasoning=_weighted_mean(answer, reasoning) if _counts(reasoning) else 0.0,
        breakdown=look | answer,
        calls=by_call,
        numbers=unweighted.numbers,
    )


def _weighted_mean(scores: TermScores, terms: Sequence[WeightedReward]) -> float:
    """Of the terms that have a score; 0 where none of them counts."""
    own = [term for term in terms if term.name in scores]
    weight = sum(term.weight for term in own)
    return sum(term.weight * scores[term.name] for term in own) / weight if weight else 0.0


def _combined(looks: Sequence[TermScores], terms: Sequence[WeightedReward], calls: str) -> dict[str, float]:
    """One score per term: all together by `calls`, and those that say otherwise their own way."""
    together = COMBINED[calls](looks, terms)
    return together | {
        t.name: OF_A_TERM[t.calls](own, [t])[t.name]
        for t in terms
        if t.calls and (own := [look for look in looks if t.name in look])
    }


def _mean_look(looks: Sequence[TermScores], terms: Sequence[WeightedReward]) -> dict[str, float]:
    own = {term.name: [look[term.name] for look in looks if term.name in look] for term in terms}
    return {name: fmean(scores) for name, scores in own.items() if scores}


def _last_look(looks: Sequence[TermScores], terms: Sequence[WeightedReward]) -> dict[str, float]:
    return dict(looks[-1])


def _best_look(looks: Sequence[TermScores], terms: Sequence[WeightedReward]) -> dict[str, float]:
    return dict(max(looks, key=lambda look: _weighted_mean(look, terms) if _counts(terms) else 0.0))


def _sum_of_looks(looks: Sequence[TermScores], terms: Sequence[WeightedReward]) -> dict[str, float]:
    return {term.name: sum(look[term.name] for look in looks) for term in terms}


COMBINED = {"mean": _mean_look, "last": _last_look, "max": _best_look}  # several calls -> one score per term
OF_A_TERM = COMBINED | {"sum": _sum_of_looks}  # prices add up; shares of something right do not
