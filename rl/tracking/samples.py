"""Samples for the sinks that show more than curves: rows of a table, and trajectories as videos."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from rl.tracking.sample_videos import SampleVideo, sample_video
from rl.trajectory import TrajectoryGroup

TRAINING, HELD_OUT = "training", "held_out"  # what samples are of
MOST_ROWS = 256  # of a table
MOST_TEXT = 400  # characters of a cell


@dataclass(frozen=True, slots=True)
class SampleRow:
    """A trajectory as a row of a table. A column has one type: of what a row does not have, an empty text or None."""

    task: str
    question: str
    expected: str  # answer
    text: str  # all that the policy wrote
    evidence_s: str
    asked_s: str  # windows, in order; or why there is none
    frames: int  # that it was given
    retrieval: float | None  # rewards
    answer: float | None
    stop: str
    failed: str  # why there is no reward


COLUMNS = tuple(field.name for field in fields(SampleRow))


@dataclass(frozen=True, slots=True)
class Samples:
    """What is shown after a step, beside its numbers."""

    of: str  # TRAINING | HELD_OUT
    videos: tuple[SampleVideo, ...] = ()
    rows: tuple[SampleRow, ...] = ()


def sample_rows(records: Iterable[Mapping[str, Any]]) -> tuple[SampleRow, ...]:
    """Rows of records (rl.tracking.records), MOST_ROWS at most."""
    return tuple(_row(record) for _, record in zip(range(MOST_ROWS), records, strict=False))


def sample_videos(
    records: Sequence[Mapping[str, Any]], groups: Sequence[TrajectoryGroup | None]
) -> tuple[SampleVideo, ...]:
    """A video of the first sibling of each group; of those that were lost, none.

    Args:
        records: those of the groups, in order, every sibling.
        groups: with their pixels; None: lost with the node it lay on.
    """
    first = {record["group"]: record for record in records if record["sibling"] == 0}
    return tuple(
        sample_video(first[index], _first_blocks(group))
        for index, group in enumerate(groups)
        if group is not None and index in first
    )


def _first_blocks(group: TrajectoryGroup) -> list[np.ndarray | None]:
    """The pixels of its coarse frames, and of those before each turn of its first sibling."""
    blocks = [group.coarse_frames, *(turn.frames for turn in group.trajectories_G[0].turns)]
    return [None if block is None else block.pixels_THWC for block in blocks]


def markdown_table(rows: Sequence[SampleRow]) -> str:
    """Rows as Markdown; what others wrote cannot leave its cell."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    return "\n".join([*lines, *("| " + " | ".join(map(_cell, cells(row))) + " |" for row in rows)])


def cells(row: SampleRow) -> list[Any]:
    """The values of a row, in the order of COLUMNS."""
    return [getattr(row, name) for name in COLUMNS]


def _row(record: Mapping[str, Any]) -> SampleRow:
    task, rewards = record["task"], record["rewards"]
    calls = [turn["call"] for turn in record["turns"] if turn["call"]]
    failed = rewards.get("failed")
    spans = [*([task["evidence_s"]] if task["evidence_s"] else []), *task.get("further_evidence_s", ())]
    return SampleRow(
        task=task["id"],
        question=task["question"][:MOST_TEXT],
        expected=str(task["answer"])[:MOST_TEXT],
        text=record["text"][-MOST_TEXT:],
        evidence_s=", ".join(f"{start:g} - {end:g}" for start, end in spans),
        asked_s=", ".join(map(_asked, calls)),
        frames=sum(call.get("frames", 0) for call in calls),
        retrieval=_number(rewards.get("sampling")),
        answer=_number(rewards.get("reasoning")),
        stop=record["stop"],
        failed=f"{failed['term']}: {failed['cause']}" if failed else "",
    )


def _number(value: float | str | None) -> float | None:
    """What is finite; records have the others as texts."""
    return value if isinstance(value, float | int) else None


def _asked(call: Mapping[str, Any]) -> str:
    if "asked_s" not in call:
        return call["tool"] if "granted_s" in call else "refused" if "refused" in call else "malformed"
    start_s, end_s = call["asked_s"]
    return f"{start_s:g} - {end_s:g} at {call['asked_fps']:g} fps"


def _cell(value: Any) -> str:
    text = "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
    for mark, written in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;")):
        text = text.replace(mark, written)
    return " ".join(text.split())
