"""Greedy evaluation: the held-out numbers of a training run, and benchmarks rolled out example by example.

`roll_out_remaining` is the whole of an evaluation but for the scoring: what is not done yet goes to the rollout
workers, and each outcome is written before the next is waited for.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from rl.evaluation.intervals import estimate_mean
from rl.evaluation.predictions import Outcome, PredictionFile
from rl.group_summary import RemoteGroup
from rl.tracking.held_out import EVALUATION_STEP
from rl.tracking.records import call_record
from rl.trajectory import (
    StopReason,
    Trajectory,
    VideoTask,
)


class Rollouts(Protocol):
    """Rolls tasks out and yields them as they finish, each with its index in `tasks`."""

    def roll_out(
        self, tasks: Sequence[VideoTask], *, step: int, greedily: bool, in_flight: int
    ) -> Iterator[list[tuple[int, RemoteGroup]]]: ...


Scorer = Callable[[Sequence[tuple[int, RemoteGroup]]], list[Outcome]]  # (index of the task, its group)


def roll_out_remaining(
    tasks: Sequence[VideoTask],
    *,
    rollouts: Rollouts,
    scorer: Scorer,
    file: PredictionFile,
    in_flight: int,
    report: Callable[[Outcome], None],
) -> None:
    """Roll out the tasks that are not done yet; every outcome is in the file before it is reported.

    Greedy trajectories depend on the weights alone, so neither order nor interruption matters, up to rounding: an
    engine adds in another order when other requests share its batch, and on a GPU a near tie can fall otherwise.

    Args:
        in_flight: tasks at a time, per rollout worker.
    """
    rest = [index for index, task in enumerate(tasks) if not is_done(file.outcomes.get(task.task_id))]
    session, started = file.next_session, time.perf_counter()
    chosen = [tasks[index] for index in rest]
    for finished in rollouts.roll_out(chosen, step=EVALUATION_STEP, greedily=True, in_flight=in_flight):
        for scored in scorer([(rest[place], group) for place, group in finished]):
            outcome = replace(scored, session=session, elapsed_s=round(time.perf_counter() - started, 3))
            file.append(outcome)
            report(outcome)


def is_done(outcome: Outcome | None) -> bool:
    """Whether an example need not be rolled out (again): one that could not be read or scored is tried again."""
    return outcome is not None and outcome.missing is None and outcome.failed is None


@dataclass(frozen=True, slots=True)
class ExampleScore:
    """The metrics of an example, and how its prediction was parsed."""

    metrics: Mapping[str, float]
    answer: str | None
    windows_s: tuple[tuple[float, float], ...]
    failed: str | None = None


def missing_prediction(trajectory: Trajectory) -> str | None:
    """Why there is nothing to predict from; None if there is."""
    if trajectory.stop_reason in (StopReason.VIDEO_ERROR, StopReason.TOOL_ERROR):
        return trajectory.note or "the video could not be read"
    return None if trajectory.turns else trajectory.note or "the policy was never asked"


def outcome_of(task_id: str, index: int, group: str, trajectory: Trajectory, score: ExampleScore) -> Outcome:
    """One line of predictions.jsonl."""
    for name, value in score.metrics.items():
        if not math.isfinite(value):
            raise ValueError(f"task {task_id}: the metric {name!r} came out as {value}; its code must be fixed")
    return Outcome(
        task_id=task_id,
        index=index,
        group=group,
        metrics=dict(score.metrics),
        answer=score.answer,
        windows_s=score.windows_s,
        text=trajectory.answer_text,
        stop=trajectory.stop_reason.value,
        calls=tuple(map(call_record, trajectory.calls)),
        frames=sum(call.num_frames for call in trajectory.granted_calls),
        sampled_tokens=sum(len(turn.completion.token_ids) for turn in trajectory.turns),
        missing=missing_prediction(trajectory),
        failed=score.failed,
    )


def summarise_outcomes(
    outcomes: Sequence[Outcome], *, over_groups: Sequence[str] = (), over_file: Sequence[str] = (), unasked: int = 0
) -> dict[str, Any]:
    """Metrics with intervals, by group too, and counts; the same whatever the order in which examples finished.

    Args:
        over_groups: metrics that are means over groups of the mean within each; the others are means over examples.
        over_file: metrics in which the questions of the file count 0 that were not asked.
        unasked: how many those are.
    """
    ordered = _in_order(outcomes)
    by_group = {group: [o for o in ordered if o.group == group] for group in sorted({o.group for o in ordered})}
    seconds = sum(_seconds_of_sessions(ordered).values())
    return {
        "counts": _counts(ordered),
        "metrics": _metrics(ordered, over_groups, over_file, unasked),
        "groups": {group: _metrics(part) for group, part in by_group.items()} if len(by_group) > 1 else {},
        "behaviour": _behaviour([outcome for outcome in ordered if outcome.missing is None]),
        "seconds": round(seconds, 3),
        "tasks_per_s": round(len(ordered) / seconds, 3) if seconds else None,
    }


def metric_values(
    outcomes: Sequence[Outcome], *, over_file: Sequence[str] = (), unasked: int = 0
) -> dict[str, tuple[list[float], list[str]]]:
    """By metric: its values and the groups of their examples, in the benchmark's order.

    Args:
        over_file, unasked: as for `summarise_outcomes`; the questions that were not asked come last, in group "".
    """
    found = {}
    for name in sorted({name for outcome in outcomes for name in outcome.metrics}):
        having = [outcome for outcome in _in_order(outcomes) if name in outcome.metrics]
        more = unasked if name in over_file else 0
        values = [outcome.metrics[name] for outcome in having]
        found[name] = (values + [0.0] * more, [outcome.group for outcome in having] + [""] * more)
    return found


def _in_order(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return sorted(outcomes, key=lambda outcome: (outcome.index, outcome.task_id))


def _metrics(
    outcomes: Sequence[Outcome], over_groups: Sequence[str] = (), over_file: Sequence[str] = (), unasked: int = 0
) -> dict[str, Any]:
    return {
        name: asdict(estimate_mean(values, groups if name in over_groups else None))
        for name, (values, groups) in metric_values(outcomes, over_file=over_file, unasked=unasked).items()
    }


def _behaviour(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What the policy did where the video could be read; malformed and refused calls are shares of all calls."""
    if not outcomes:
        return {}
    numbers = {
        "granted_calls": [float(any("granted_s" in call for call in outcome.calls)) for outcome in outcomes],
        "malformed_calls": [float("malformed" in call) for outcome in outcomes for call in outcome.calls],
        "refused_calls": [float("refused" in call) for outcome in outcomes for call in outcome.calls],
        "frames": [float(outcome.frames) for outcome in outcomes],
        "sampled_tokens": [float(outcome.sampled_tokens) for outcome in outcomes],
        "truncated": [float(outcome.stop == StopReason.TRUNCATED) for outcome in outcomes],
    }
    return {name: asdict(estimate_mean(values)) for name, values in numbers.items() if values}


def _counts(outcomes: Sequence[Outcome]) -> dict[str, int]:
    return {
        "examples": len(outcomes),
        "missing": sum(outcome.missing is not None for outcome in outcomes),
        "video_errors": sum(outcome.stop == StopReason.VIDEO_ERROR for outcome in outcomes),
        "truncated": sum(outcome.stop == StopReason.TRUNCATED for outcome in outcomes),
        "unparsed": sum(outcome.metrics.get("unparsed", 0.0) > 0 for outcome in outcomes),
        "failed": sum(outcome.failed is not None for outcome in outcomes),
    }


def _seconds_of_sessions(outcomes: Sequence[Outcome]) -> Counter[int]:
    """Seconds of rolling out in each session, up to its last outcome."""
    seconds: Counter[int] = Counter()
    for outcome in outcomes:
        seconds[outcome.session] = max(seconds[outcome.session], outcome.elapsed_s)
    return seconds
