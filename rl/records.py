"""Each trajectory as a readable record: what the policy saw, asked, wrote, and what it was worth."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rl.trajectory import (
    Frames,
    MalformedCall,
    RetrievalCall,
    RewardFailure,
    ScoredGroup,
    SegmentRewards,
    TimeSpan,
    Trajectory,
    VideoTask,
)


def write_records(folder: Path, step: int, scored: Sequence[ScoredGroup], limit: int) -> Path:
    """Write up to `limit` trajectories of a step to step_NNNNNN.jsonl, whole groups first."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:06d}.jsonl"
    lines = [json.dumps(record, ensure_ascii=False) for _, record in zip(range(limit), records(scored), strict=False)]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def records(scored: Iterable[ScoredGroup]) -> Iterator[dict[str, Any]]:
    """One dictionary per trajectory, ready for JSON."""
    for group in scored:
        for sibling, (trajectory, verdict) in enumerate(zip(group.group.trajectories_G, group.rewards_G, strict=True)):
            yield {
                "task": _task(group.group.task),
                "sibling": sibling,
                "opening": _frames(group.group.opening_frames),
                **_trajectory(trajectory),
                "rewards": _verdict(verdict),
            }


def _task(task: VideoTask) -> dict[str, Any]:
    return {
        "id": task.task_id,
        "video": task.video_path,
        "question": task.question,
        "answer": task.answer,
        "evidence_s": _span(task.evidence_span),
        "evidence_fps": task.evidence_fps,
    }


def _trajectory(trajectory: Trajectory) -> dict[str, Any]:
    return {
        "text": trajectory.answer_text,
        "stop": trajectory.stop_reason.value,
        "note": trajectory.note,
        "turns": [
            {
                "segment": turn.segment.name.lower(),
                "context_tokens": len(turn.context_token_ids),
                "sampled_tokens": len(turn.completion.token_ids),
                "mean_logprob": sum(turn.completion.logprobs) / max(len(turn.completion.logprobs), 1),
                "policy_version": turn.completion.policy_version,
                "call": _call(turn.call),
                "frames": _frames(turn.frames),
            }
            for turn in trajectory.turns
        ],
    }


def _call(call: RetrievalCall | MalformedCall | None) -> dict[str, Any] | None:
    if call is None:
        return None
    if isinstance(call, MalformedCall):
        return {"malformed": call.reason}
    return {
        "asked_s": _span(call.asked),
        "asked_fps": call.asked_fps,
        "granted_s": _span(call.span),
        "granted_fps": call.fps,
        "frames": call.num_frames,
        "clamped": list(call.clamped),
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


def _verdict(verdict: SegmentRewards | RewardFailure) -> dict[str, Any]:
    if isinstance(verdict, RewardFailure):
        return {"failed": {"term": verdict.term, "cause": verdict.cause, "detail": verdict.detail}}
    return {"sampling": verdict.sampling, "reasoning": verdict.reasoning, "terms": dict(verdict.breakdown)}
