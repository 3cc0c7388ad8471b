"""Each trajectory as a readable record: what the policy saw, asked, wrote, and what it was worth, token by token.

Pixels are not in it: frames can be decoded again from `task.video` at `timestamps_s`. Of the tokens a turn sampled:

| key | is |
|---|---|
| `tokens` | the text of each, the end token's marker included; a character spread over several stands at the last |
| `logprobs` | the engine's log-prob of each, nat |
| `learner_logprobs` | the learner's, of the policy that sampled, from the pass that learned; null: none such |
| `advantage` | what all of them were credited with; null: not learned from |

Legend: P groups of a step · G siblings of one task · S sampled tokens of a trajectory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rl.algorithm.advantages import NOT_LEARNED, Credit
from rl.group_summary import RemoteGroup
from rl.tracking.lines import replace_whole
from rl.trajectory import (
    SPAN_FPS,
    Call,
    Frames,
    GrantedCall,
    MalformedCall,
    RefusedCall,
    RewardFailure,
    ScoredGroup,
    SegmentRewards,
    TimeSpan,
    ToolCall,
    Trajectory,
    TrajectoryGroup,
    Turn,
    VideoTask,
)

if TYPE_CHECKING:
    import numpy as np

DECIMALS = 5  # of log-probs (nat) and advantages

PiecesOf = Callable[[Sequence[int]], Sequence[str]]  # the text of each token: Processor.pieces of rl.policy.processor
Entry = TypeVar("Entry")


def write_step(folder: Path, step: int, records: Iterable[dict[str, Any]]) -> Path:
    """Write the records of a step to step_NNNNNN.jsonl.

    Raises:
        OSError: they could not be written; what lay there stays as it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = step_path(folder, step)
    replace_whole(path, lambda draft: write_records(draft, records))
    return path


def step_path(folder: Path, step: int) -> Path:
    """Where the records of a step lie."""
    return folder / f"step_{step:06d}.jsonl"


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write records as JSON lines."""
    lines = [json.dumps(r, ensure_ascii=False, allow_nan=False, separators=(",", ":")) for r in records]
    # half a surrogate pair, as in a file name that is no UTF-8, becomes its own JSON escape
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="backslashreplace")


def records(
    scored: Sequence[ScoredGroup[TrajectoryGroup] | None],
    pieces_of: PiecesOf,
    *,
    credit_PG: Sequence[Sequence[Credit]] | None = None,
    logprobs_PG: Sequence[Sequence[np.ndarray | None]] | None = None,
) -> Iterator[dict[str, Any]]:
    """One dictionary per trajectory, ready for JSON; numbers that are not finite are strings.

    Args:
        scored: whole groups, with their tokens; None: one that was lost, which is left out.
        credit_PG: what each sibling was credited with, where the groups were learned from.
        logprobs_PG: the learner's log-probs, as in LearnerUpdate, where the groups were learned from.
    """
    credit_PG = _everywhere(NOT_LEARNED, scored) if credit_PG is None else credit_PG
    logprobs_PG = _everywhere(None, scored) if logprobs_PG is None else logprobs_PG
    for index, (group, credit_G, logprobs_G) in enumerate(zip(scored, credit_PG, logprobs_PG, strict=True)):
        if group is None:
            continue
        siblings = zip(group.group.trajectories_G, group.rewards_G, credit_G, logprobs_G, strict=True)
        for sibling, (trajectory, outcome, credit, logprobs_S) in enumerate(siblings):
            yield {
                "task": task_record(group.group.task),
                "group": index,
                "sibling": sibling,
                "duration_s": round(group.group.duration_s, 3),
                "coarse_frames": _frames(group.group.coarse_frames),
                "text": trajectory.answer_text,
                "stop": trajectory.stop_reason.value,
                "note": trajectory.note,
                "turns": _turns(trajectory, pieces_of, credit, logprobs_S),
                "rewards": _outcome(outcome),
            }


def leading_groups(groups: Sequence[RemoteGroup], trajectories: int) -> int:
    """How many groups, from the first, hold so many trajectories: whole groups, or all of them."""
    counts = accumulate((len(group.trajectories_G) for group in groups), initial=0)  # in none, in the first, ...
    return next((index for index, count in enumerate(counts) if count >= trajectories), len(groups))


def _everywhere(entry: Entry, scored: Sequence[ScoredGroup | None]) -> list[list[Entry]]:
    return [[entry] * len(group.rewards_G) if group else [] for group in scored]


def task_record(task: VideoTask) -> dict[str, Any]:
    """A task as records show it."""
    return {
        "id": task.task_id,
        "video": task.video_path,
        "question": task.question,
        "answer": task.answer,
        "evidence_s": _span(task.evidence_span),
        **({"further_evidence_s": list(map(_span, task.further_evidence))} if task.further_evidence else {}),
        "evidence_fps": task.evidence_fps,
    }


def _turns(
    trajectory: Trajectory, pieces_of: PiecesOf, credit: Credit, logprobs_S: np.ndarray | None
) -> list[dict[str, Any]]:
    ends = list(accumulate(len(turn.completion.token_ids) for turn in trajectory.turns))
    turns = []
    for index, (turn, first, end) in enumerate(zip(trajectory.turns, [0, *ends], ends, strict=False)):
        advantage = credit.of(turn.segment, index)
        known = logprobs_S is not None and advantage is not None
        turns.append(_turn(turn, pieces_of, advantage, logprobs_S[first:end].tolist() if known else None))
    return turns


def _turn(
    turn: Turn, pieces_of: PiecesOf, advantage: float | None, learner_logprobs: list[float] | None
) -> dict[str, Any]:
    said = turn.completion
    return {
        "segment": turn.segment.name.lower(),
        "context_tokens": len(turn.context_token_ids),
        "sampled_tokens": len(said.token_ids),
        "mean_logprob": _finite(sum(said.logprobs) / max(len(said.logprobs), 1)),
        "policy_version": said.policy_version,
        "call": _call(turn.call),
        "frames": _frames(turn.frames),
        "tokens": list(pieces_of(said.token_ids)),
        "logprobs": [_rounded(value) for value in said.logprobs],
        "learner_logprobs": None if learner_logprobs is None else [_rounded(value) for value in learner_logprobs],
        "advantage": None if advantage is None else _rounded(advantage),
    }


def _call(call: Call | None) -> dict[str, Any] | None:
    if call is None:
        return None
    return call_record(call) | ({"clamped": list(call.clamped)} if isinstance(call, GrantedCall) else {})


def call_record(call: Call) -> dict[str, Any]:
    """A call as records show it; those of `span_fps` do not name their tool."""
    named = {} if call.tool == SPAN_FPS else {"tool": call.tool}
    if isinstance(call, MalformedCall):
        return named | {"malformed": call.reason}
    if isinstance(call, RefusedCall):
        return named | {"refused": call.reason}
    if isinstance(call, ToolCall):
        return named | {
            "arguments": dict(call.arguments),
            "granted_s": _span(call.span),
            "box": None if call.box is None else list(call.box),
            **({} if call.asked_box is None else {"asked_box": list(call.asked_box)}),
        }
    return {
        "asked_s": _span(call.asked),
        "asked_fps": call.asked_fps,
        "granted_s": _span(call.span),
        "granted_fps": call.fps,
        "frames": call.num_frames,
    }


def _frames(frames: Frames | None) -> dict[str, Any] | None:
    if frames is None:
        return None
    return {
        "timestamps_s": [round(t, 3) for t in frames.timestamps_s_T],
        "scene_lengths": list(frames.scene_lengths),
        "height": frames.height,
        "width": frames.width,
    }


def _span(span: TimeSpan | None) -> list[float] | None:
    return None if span is None else [span.start_s, span.end_s]


def _outcome(outcome: SegmentRewards | RewardFailure) -> dict[str, Any]:
    if isinstance(outcome, RewardFailure):
        return {"failed": {"term": outcome.term, "cause": outcome.cause, "detail": outcome.detail}}
    return {
        "sampling": None if outcome.sampling is None else _finite(outcome.sampling),
        "reasoning": _finite(outcome.reasoning),
        "terms": {name: _finite(value) for name, value in outcome.breakdown.items()},
        **({"numbers": {k: _finite(v) for k, v in outcome.numbers.items()}} if outcome.numbers else {}),
        **({"calls": [_finite(value) for value in outcome.calls]} if len(outcome.calls) > 1 else {}),
    }


def _rounded(value: float) -> float | str:
    return _finite(round(value, DECIMALS) + 0.0)  # no sign on zero


def _finite(value: float) -> float | str:
    """The number, or the name of one that JSON does not have, as in metrics.jsonl."""
    return value if math.isfinite(value) else str(value)
